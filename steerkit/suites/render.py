"""A suite's report as HTML, markdown, or a few lines in a notebook."""

from typing import TYPE_CHECKING, Any

from steerkit.audits.render import cell, code, environment, flat
from steerkit.plotting.style import CSS, script, to_div

if TYPE_CHECKING:
    from steerkit.suites.result import SuiteReport

HERE = "steerkit.suites"


def to_html(report: "SuiteReport") -> str:
    """One self-contained page, light and dark: the verdict first, then the evidence."""
    answered = rows(report)
    page: str = (
        environment(HERE)
        .get_template("suite.html.jinja")
        .render(
            report=report,
            rows=answered,
            provenance=flat(report.provenance),
            plotlyjs=script() if any(row["div"] for row in answered) else "",
            plot_css=CSS,
        )
    )
    return page


def to_markdown(report: "SuiteReport") -> str:
    """The report as markdown."""
    text: str = (
        environment(HERE, escape=False)
        .get_template("suite.md.jinja")
        .render(
            report=report,
            rows=rows(report),
            cell=cell,
            code=code,
            provenance=flat(report.provenance),
        )
    )
    return text.rstrip() + "\n"


def to_fragment(report: "SuiteReport") -> str:
    """For notebooks: the questions and their answers."""
    page: str = (
        environment(HERE)
        .get_template("suite_fragment.html.jinja")
        .render(report=report, rows=rows(report))
    )
    return page


def rows(report: "SuiteReport") -> list[dict[str, Any]]:
    """A row a question that was answered: its answer, numbers and evidence."""
    adjusted = report.p_adjusted
    return [
        {
            "name": e.name,
            "question": e.question,
            "source": e.source,
            "answer": finding.answer,
            "sentence": finding.sentence,
            "p": adjusted.get(e.name),
            "estimates": finding.estimates,
            "nulls": finding.nulls,
            "section": finding.evidence,
            "div": to_div(finding.evidence.figure, div_id=f"figure-{e.name}")
            if finding.evidence is not None and finding.evidence.figure is not None
            else "",
        }
        for e in report.asked
        for finding in [report.findings.get(e.name)]
        if finding is not None
    ]

"""A suite's report as HTML, markdown, or a few lines in a notebook."""

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from steerkit.audits.render import cell, code, environment, flat
from steerkit.plotting.style import CSS, script, to_div
from steerkit.statistics import detectable
from steerkit.suites.finding import ANSWERS, Finding
from steerkit.suites.tables import DIFFERENCES, PLACES, amount, shown

if TYPE_CHECKING:
    from steerkit.suites.result import SuiteReport

HERE = "steerkit.suites"
_SHORT = ("fraction", *DIFFERENCES)
"""Units that a line on a phone has room for."""
ARMS = {
    "model": "model (audited)",
    "steered": "steered (the same model)",
    "against": "against (compared with)",
}
"""Arm, as figures and tables name it -> what it is, for readers who have read nothing else."""


def to_html(report: "SuiteReport") -> str:
    """One self-contained page, light and dark: the verdict first, then the evidence."""
    page: str = (
        environment(HERE)
        .get_template("suite.html.jinja")
        .render(
            **_told(report),
            plotlyjs=script() if any(_drawn(f) for f in report.findings.values()) else "",
            plot_css=CSS,
        )
    )
    return page


def to_markdown(report: "SuiteReport") -> str:
    """The report as markdown."""
    text: str = (
        environment(HERE, escape=False)
        .get_template("suite.md.jinja")
        .render(**_told(report), cell=cell, code=code)
    )
    return text.rstrip() + "\n"


def to_fragment(report: "SuiteReport") -> str:
    """For notebooks: the questions and their answers."""
    page: str = environment(HERE).get_template("suite_fragment.html.jinja").render(**_told(report))
    return page


def _told(report: "SuiteReport") -> dict[str, Any]:
    """What all three say."""
    questions = {e.name: e.question for e in report.asked}
    return {
        "report": report,
        "rows": rows(report),
        "count": counted(report),
        "facts": facts(report),
        "compared": compared(report),
        "not_measured": [
            (questions.get(name, name), name, why) for name, why in report.not_measured.items()
        ],
        "provenance": flat(report.provenance),
    }


def rows(report: "SuiteReport") -> list[dict[str, Any]]:
    """A row a question that was answered: its answer, numbers and evidence."""
    adjusted, examples = report.p_adjusted, report.examples
    return [
        {
            "name": e.name,
            "question": e.question,
            "source": e.source,
            "answer": finding.answer,
            "sentence": finding.sentence,
            "leading": leading(finding),
            "missed": missed(finding),
            "p": adjusted.get(e.name),
            "told_p": told_p(adjusted.get(e.name)),
            "estimates": finding.estimates,
            "nulls": finding.nulls,
            "section": finding.evidence,
            "examples": examples[e.name],
            "div": to_div(_drawn(finding), div_id=f"figure-{e.name}") if _drawn(finding) else "",
        }
        for e in report.asked
        for finding in [report.findings.get(e.name)]
        if finding is not None
    ]


def told_p(p: float | None) -> str:
    """A p in few characters; empty where nothing was tested.

    >>> told_p(0.0123), told_p(0.0002), told_p(None)
    ('p = 0.012', 'p < 0.001', '')
    """
    if p is None:
        return ""
    return f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"


def counted(report: "SuiteReport") -> list[tuple[int, str]]:
    """How many questions were answered how, and how many were not."""
    answers = Counter(f.answer for f in report.findings.values())
    found = [(answers[answer], str(answer)) for answer in ANSWERS]
    return [*found, (len(report.not_measured), "not measured")]


def leading(finding: Finding) -> dict[str, str] | None:
    """The number that decides most: its name, the number, and what it was held against."""
    if finding.leading is None:
        return None
    name, estimate = finding.leading
    bound = finding.bound
    if bound is None:
        held = ""
    elif estimate.unit == "fraction":
        held = f"{100 * bound:g}%"
    elif estimate.unit in DIFFERENCES:
        held = f"{100 * bound:g}"
    else:
        held = f"{bound:g}"
    if estimate.unit.lower() in name.lower():
        estimate = replace(estimate, unit="")
    bare = shown(estimate) if estimate.unit in _SHORT else str(estimate)
    short = bare.replace("points", "pt")
    return {"name": name, "number": shown(estimate), "short": short, "bound": held}


def missed(finding: Finding) -> str:
    """The smallest effect that would have been found, where none was; empty where one was."""
    if finding.answer == "yes" or finding.leading is None:
        return ""
    name, estimate = finding.leading
    told = []
    size = detectable(estimate)
    if size == size and estimate.n:
        from_what = "its bound" if finding.bound is not None else "none"
        told.append(
            f"{name}: {amount(size, estimate.unit)} away from {from_what} would have been found "
            "four times in five"
        )
    tested = [(n, chance) for n, chance in finding.nulls.items() if chance.p == finding.p]
    told += [f"{n}: above {c.q95:.3g} would not have been called chance" for n, c in tested[:1]]
    return "; ".join(told)


def compared(report: "SuiteReport") -> str:
    """What stands beside the audited model, for the line under the title."""
    about = report.provenance.get("arms", {})
    told = []
    if "steered" in about:
        told.append(f"steered by {'; '.join(about['steered']['steering']) or 'another model'}")
    if "against" in about:
        told.append(f"compared with {about['against']['name']}")
    return "; ".join(told)


def facts(report: "SuiteReport") -> list[tuple[str, str]]:
    """What was audited, against what, with which prompts, how many, and how it was judged."""
    about = report.provenance
    told = []
    for name, arm in about.get("arms", {}).items():
        steering = f", steered by {'; '.join(arm['steering'])}" if arm.get("steering") else ""
        told.append((ARMS.get(name, name), f"{arm['name']}{steering}"))
    material = dict(about.get("material", {}))
    if material:
        source = material.pop("name", "")
        told.append(("prompts", f"{source}: {_asked(report, tuple(material))}"))
    if "max_new_tokens" in about:
        told.append(("answers", f"greedy, at most {about['max_new_tokens']} tokens"))
    return told


def _asked(report: "SuiteReport", roles: tuple[str, ...]) -> str:
    """How many prompts of each role and side were answered, in words where there are some."""
    found: dict[tuple[str, str], set[int]] = {}
    for item in report.items:
        if item.role:
            found.setdefault((item.role, item.side), set()).add(item.index)
    titles = {(p.role, p.side or "negative"): p.title for p in PLACES}
    asked = [
        f"{titles.get(place, place[0])} ({len(indices)})"
        for role in roles
        for place, indices in sorted(found.items(), key=lambda row: row[0] != (role, "positive"))
        if place[0] == role
    ]
    read = [role for role in roles if role not in {role for role, _ in found}]
    told = [", ".join(asked)] if asked else []
    return "; ".join([*told, *([f"read, not asked: {', '.join(read)}"] if read else [])])


def _drawn(finding: Finding) -> Any:
    return None if finding.evidence is None else finding.evidence.figure

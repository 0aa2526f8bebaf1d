"""A report as HTML, markdown, or a few lines of text."""

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from steerkit.audits.evidence import Item, by_arm
from steerkit.audits.scores import Score
from steerkit.audits.section import Section
from steerkit.audits.verdict import change, find, interval

if TYPE_CHECKING:
    from steerkit.audits.report import Report

N_EXAMPLES = 6
"""Prompts a side that are shown beside one another."""
CUT = 600
"""Characters of an answer that a page shows; the JSONL holds it whole."""


def to_html(report: "Report", *, sections: Sequence[Section] = ()) -> str:
    """One self-contained page: plotly inside, no link to anywhere, light and dark."""
    from steerkit.plotting.audit import colours
    from steerkit.plotting.style import CSS, script

    page: str = (
        environment()
        .get_template("report.html.jinja")
        .render(
            report=report,
            verdict=report.verdict,
            open_verdict=report.verdict.startswith("Inconclusive"),
            table=table(report),
            figures=[
                (title, why, _div(fig, f"figure{i}")) for i, (title, why, fig) in _figures(report)
            ],
            sections=[
                (s, _div(s.figure, f"section{i}") if s.figure is not None else "")
                for i, s in enumerate((*report.sections, *sections))
            ],
            examples=examples(report),
            provenance=flat(report.provenance),
            plotlyjs=script(),
            plot_css=CSS,
            colours=colours(report),
        )
    )
    return page


def to_markdown(report: "Report") -> str:
    """The report as markdown: verdict, table, sections, what was not measured, provenance."""
    text: str = (
        environment(escape=False)
        .get_template("report.md.jinja")
        .render(
            report=report,
            verdict=report.verdict,
            table=table(report),
            cell=cell,
            code=code,
            provenance=flat(report.provenance),
        )
    )
    return text.rstrip() + "\n"


def to_fragment(report: "Report") -> str:
    """For notebooks: verdict and table, no script."""
    page: str = (
        environment()
        .get_template("fragment.html.jinja")
        .render(report=report, verdict=report.verdict, table=table(report))
    )
    return page


def to_summary(report: "Report") -> str:
    """For terminals: the verdict and one aligned line a score."""
    head, rows = table(report)
    lines = [[r["name"], *(c["text"] if c else "-" for c in r["cells"])] for r in rows]
    columns = [["", *head], *lines]
    widths = [max(len(row[i]) for row in columns) for i in range(len(columns[0]))]
    aligned = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in columns]
    left_out = [f"not measured: {name} ({why})" for name, why in report.not_measured.items()]
    above = [report.title, report.verdict, *report.costs, *left_out]
    return "\n".join([*filter(None, above), "", *(row.rstrip() for row in aligned)])


def table(report: "Report") -> tuple[list[str], list[dict[str, Any]]]:
    """Arms, and one row a check and side with a cell an arm (None: does not apply)."""
    arms = [a.name for a in report.arms]
    rows = []
    for check, side in dict.fromkeys((s.check, s.side) for s in report.scores):
        found = [find(report.scores, check, side, arm) for arm in arms]
        some = next(s for s in found if s is not None)
        rows.append(
            {
                "name": f"{check}, {side}",
                "check": check,
                "side": side,
                "unit": "" if some.unit == "fraction" else some.unit,
                "cells": [_shown(s) if s else None for s in found],
            }
        )
        if any(s is not None and s.q95 for s in found):
            rows.append(
                {
                    "name": f"{check} 95th percentile, {side}",
                    "check": check,
                    "side": side,
                    "unit": some.unit,
                    "cells": [
                        {**_parts(interval(s.q95, s.unit)), "change": "", "direction": ""}
                        if s and s.q95
                        else None
                        for s in found
                    ],
                }
            )
    return arms, rows


def examples(report: "Report", n: int = N_EXAMPLES) -> list[dict[str, Any]]:
    """Prompts with the arms' answers side by side, evenly spread over each side."""
    rows = by_arm(report.items)
    if not rows:
        return []
    arms = [a for a in report.arms if a.name in rows]
    first = rows[arms[0].name]
    byindex = {a.name: {i.index: i for i in rows[a.name]} for a in arms}
    found = []
    for side in ("positive", "negative"):
        own = [i for i in first if i.side == side]
        picked = [own[k * len(own) // n] for k in range(n)] if len(own) > n else own
        for item in picked:
            answers = [
                {"arm": a.name, "role": a.role, **_answer(byindex[a.name][item.index])}
                for a in arms
                if item.index in byindex[a.name]
            ]
            found.append({"side": side, "prompt": item.prompt[:CUT], "answers": answers})
    return found


def _answer(item: Item) -> dict[str, Any]:
    marks = [
        name
        for name in ("refusal", "degeneration", "correct", "judge")
        if item.scores.get(name) == 1.0
    ]
    text = item.output.strip()
    return {"text": text[:CUT] + ("…" if len(text) > CUT else ""), "marks": marks}


def _shown(score: Score) -> dict[str, str]:
    d = score.difference
    return {
        **_parts(interval(score.estimate, score.unit)),
        "change": change(d.estimate, score.unit) if d else "",
        "direction": d.direction if d else "",
    }


def _parts(text: str) -> dict[str, str]:
    value, bounds = text.split(" ", 1)
    return {"text": text, "value": value, "bounds": bounds}


def _figures(report: "Report") -> Any:
    from steerkit.plotting import audit as plots

    rates = [s for s in report.scores if s.unit == "fraction"]
    made = []
    if rates:
        made.append(
            (
                "Rates",
                "Share of prompts, with 95% intervals that resample groups of prompts.",
                plots.rates(report),
            )
        )
    if any(s.difference for s in rates):
        made.append(
            (
                "Differences against the plain model",
                "Paired on the same prompts. An interval that crosses zero decides nothing.",
                plots.differences(report),
            )
        )
    if any(i.measured.get("kl") for i in report.items):
        made.append(
            (
                "KL per token on negative prompts",
                "How far each arm's next-token distribution is from the plain model's, at every "
                "token of the plain model's own answers. The legend counts tokens below 10⁻⁶.",
                plots.kl_histogram(report),
            )
        )
    if any(i.measured.get("projection") for i in report.items):
        made.append(
            (
                "Projection on the direction",
                "0 is the mean of the negative prompts the direction was fitted on, 1 that of the "
                "positive ones.",
                plots.projections(report),
            )
        )
    return enumerate(made)


def _div(fig: Any, name: str) -> str:
    from steerkit.plotting.style import to_div

    return to_div(fig, div_id=name)


def environment(*packages: str, escape: bool = True) -> Any:
    """Templates of further packages, then those of this one, which they may include."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    places = (*packages, "steerkit.audits")
    return Environment(
        loader=ChoiceLoader([PackageLoader(place, "templates") for place in places]),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def flat(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested provenance as dotted names and text."""
    rows: list[tuple[str, str]] = []
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows += flat(value, f"{name}.")
        elif isinstance(value, list | tuple):
            rows.append((name, ", ".join(map(str, value))))
        elif value is not None and value != "":
            rows.append((name, f"{value:.6g}" if isinstance(value, float) else str(value)))
    return rows


def cell(text: object) -> str:
    """Text inside a markdown table cell: one line, no markup of its own."""
    flat = " ".join(str(text).split())
    return html.escape(flat, quote=False).replace("|", "\\|").replace("`", "'")


def code(text: object) -> str:
    """Text as inline code: markup inside is not read as such."""
    return "`" + " ".join(str(text).split()).replace("`", "'") + "`"

"""Figures of an audit: rates with intervals, differences, KL per token, projections."""

from collections.abc import Sequence
from dataclasses import replace
from html import escape

import numpy as np
import plotly.graph_objects as go

from steerkit.audits.evidence import Item, by_arm
from steerkit.audits.report import Report
from steerkit.audits.scores import Score
from steerkit.plotting.style import COLOURS, PALETTE, figure, intervals, reference_line
from steerkit.statistics import Estimate

OTHERS = (PALETTE[3], PALETTE[4], PALETTE[0], PALETTE[6])
PROMPTED = (COLOURS["prompted"], "#7BC8A4", "#00614A")


def colours(report: Report) -> dict[str, str]:
    """Arm -> colour; prompting baselines are shades of one."""
    found = {}
    prompted = others = 0
    for arm in report.arms:
        if arm.role in ("plain", "steered"):
            found[arm.name] = COLOURS[arm.role]
        elif arm.role == "prompted":
            found[arm.name] = PROMPTED[prompted % len(PROMPTED)]
            prompted += 1
        else:
            found[arm.name] = OTHERS[others % len(OTHERS)]
            others += 1
    return found


def rates(report: Report) -> go.Figure:
    """Every rate of every arm, with 95% intervals."""
    scores = [s for s in report.scores if s.unit == "fraction"]
    fig = _rows(report, [(s, s.estimate) for s in scores], x="share of prompts (%)")
    fig.update_xaxes(range=[-2, 102])
    return fig


def differences(report: Report) -> go.Figure:
    """Paired difference of every rate against the plain model; an interval over 0 is open."""
    scores = [
        (s, s.difference.estimate) for s in report.scores if s.difference and s.unit == "fraction"
    ]
    fig = _rows(report, scores, x="change (points)")
    return reference_line(fig, 0, "no change", axis="x")


def _rows(report: Report, scores: Sequence[tuple[Score, Estimate]], *, x: str) -> go.Figure:
    """One row a check and side, one marker with its interval an arm, in percent."""
    labels = list(dict.fromkeys(_label(s) for s, _ in scores))
    arms = [a.name for a in report.arms if any(s.arm == a.name for s, _ in scores)]
    step = 0.7 / max(1, len(arms))
    fig = figure(x=x, height=150 + len(labels) * (18 + 15 * len(arms)))
    for number, arm in enumerate(arms):
        own = [(s, e) for s, e in scores if s.arm == arm]
        percent = [
            replace(e, value=100 * e.value, low=100 * e.low, high=100 * e.high) for _, e in own
        ]
        offset = step * ((len(arms) - 1) / 2 - number)
        fig.add_scatter(
            x=[e.value for e in percent],
            y=[len(labels) - 1 - labels.index(_label(s)) + offset for s, _ in own],
            error_x=intervals(percent),
            mode="markers",
            marker={"color": colours(report)[arm], "size": 9},
            name=escape(arm),
            text=[f"{s.check}, {s.side}<br>{e}" for (s, _), e in zip(own, percent, strict=True)],
            hovertemplate="%{text}<extra>" + escape(arm) + "</extra>",
        )
    fig.update_yaxes(
        tickmode="array",
        tickvals=[len(labels) - 1 - i for i in range(len(labels))],
        ticktext=labels,
        range=[-0.6, len(labels) - 0.4],
        showgrid=False,
        zeroline=False,
    )
    for i in range(1, len(labels)):
        fig.add_hline(i - 0.5, line={"color": "rgba(128,128,128,0.22)", "width": 1})
    return fig


KL_FLOOR = 1e-6
"""Nats per token below which a histogram only counts; float32 resolves no less."""


def kl_histogram(report: Report, items: Sequence[Item] | None = None) -> go.Figure:
    """KL of every answer token against the plain model, on negative prompts, by arm.

    Tokens below `KL_FLOOR` are counted in the legend and not drawn.
    """
    rows = by_arm(report.items if items is None else items)
    plain = next((a.name for a in report.arms if a.role == "plain"), None)
    tokens = {
        arm: np.array([v for item in own for v in item.measured.get("kl", ())])
        for arm, own in rows.items()
        if arm != plain
    }
    tokens = {arm: v for arm, v in tokens.items() if v.size}
    top = max((float(v.max()) for v in tokens.values()), default=1.0)
    edges = np.linspace(np.log10(KL_FLOOR), max(0.5, float(np.log10(max(top, KL_FLOOR)))), 27)
    fig = figure(x="KL (nats/token)", y="share of tokens", height=360)
    palette = colours(report)
    for arm, values in tokens.items():
        above = values[values >= KL_FLOOR]
        counts, _ = np.histogram(np.log10(above), edges)
        fig.add_scatter(
            x=10 ** ((edges[:-1] + edges[1:]) / 2),
            y=counts / values.size,
            mode="lines",
            line={"shape": "hvh", "color": palette.get(arm, PALETTE[6]), "width": 2},
            name=f"{escape(arm)} ({1 - above.size / values.size:.0%} below 10⁻⁶)",
            hovertemplate="KL %{x:.2g}: %{y:.1%} of tokens<extra>" + escape(arm) + "</extra>",
        )
    fig.update_xaxes(type="log", exponentformat="power", dtick=2, tickangle=0)
    fig.update_yaxes(tickformat=".0%", rangemode="tozero")
    return fig


def projections(report: Report, items: Sequence[Item] | None = None) -> go.Figure:
    """Where each prompt stands along the direction, by side and arm."""
    rows = by_arm(report.items if items is None else items)
    fig = figure(x="projection (class gaps)", height=120 + 60 * max(1, len(rows)))
    for side in ("positive", "negative"):
        x, y = [], []
        for arm, own in rows.items():
            found = [
                i.measured["projection"][0]
                for i in own
                if i.side == side and i.measured.get("projection")
            ]
            x += found
            y += [escape(arm)] * len(found)
        fig.add_box(
            x=x,
            y=y,
            name=f"{side} prompts",
            orientation="h",
            marker={"color": COLOURS[side], "size": 4},
            line={"width": 1.5},
            boxpoints="outliers",
        )
    fig.update_layout(boxmode="group")
    fig.update_yaxes(autorange="reversed")
    return fig


def _label(score: Score) -> str:
    return f"{score.check}<br>{score.side}"

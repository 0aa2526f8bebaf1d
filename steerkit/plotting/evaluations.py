"""Figures of evaluations: each draws its baseline and its intervals."""

import plotly.graph_objects as go

from steerkit.errors import MethodError
from steerkit.evaluations import (
    AlignmentQuality,
    BranchingFactor,
    DecodingRobustness,
    JudgeValidation,
    Parity,
    ThreeWay,
)
from steerkit.evaluations.branching_result import CurvePoint
from steerkit.evaluations.outcomes import OUTCOMES
from steerkit.plotting.style import COLOURS, PALETTE, figure, intervals, reference_line
from steerkit.statistics import Estimate

ENOUGH = 10
"""Weighted branching is drawn where its weights amount to this many samples or more."""
ROW = 30
"""Height of one row of a figure of rows, in pixels."""


def geometry(result: AlignmentQuality) -> go.Figure:
    """Alignment quality and held-out AUC, site by site, beside chance and the words alone."""
    fig = figure(
        title=f"Alignment quality by site, {result.model}",
        x="site",
        y="of 100",
        height=420,
    )
    names = [str(s.site) for s in result.sites]
    quality = [s.quality for s in result.sites]
    auc = [_times(s.auc, 100) for s in result.sites]
    fig.add_scatter(
        x=names,
        y=[e.value for e in quality],
        error_y=intervals(quality),
        mode="lines+markers",
        name="alignment quality",
        line={"color": COLOURS["positive"]},
    )
    fig.add_scatter(
        x=names,
        y=[e.value for e in auc],
        error_y=intervals(auc),
        mode="lines+markers",
        name="held-out AUC x 100",
        line={"color": COLOURS["negative"], "dash": "dot"},
    )
    fig.update_yaxes(range=[-5, 108])
    fig = reference_line(fig, 0, "quality of labels at random")
    if result.text_quality is not None:
        words = f"quality of the words alone {result.text_quality.value:.1f}"
        fig = reference_line(fig, result.text_quality.value, words, role="text")
        fig.layout.annotations[-1].update(xanchor="left", x=0)
    return fig


def decoding(result: DecodingRobustness) -> go.Figure:
    """Success of every setting, of any of them, and of as many tries at one setting."""
    rows: list[tuple[str, Estimate, str]] = [("greedy", result.greedy, COLOURS["plain"])]
    rows += [(s.setting, s.rate, PALETTE[0]) for s in result.settings]
    rows.append((f"any of {result.budget} settings", result.swept.observed, COLOURS["steered"]))
    rows.append(
        (f"any of {result.budget} at {result.fixed}", result.tried.observed, COLOURS["prompted"])
    )
    for arm, what in ((result.swept, "settings"), (result.tried, "tries")):
        if arm.corrected is not None:
            name = f"any of {result.budget} {what}, judge corrected"
            colour = COLOURS["steered" if what == "settings" else "prompted"]
            rows.append((name, arm.corrected, colour))
    fig = _rows(rows, title=f"Success by decoding, {result.model}", x="success (fraction)")
    fig.update_xaxes(range=[-0.03, 1.05])
    if result.inflation is not None:
        label = f"any-of-{result.budget} of false positives alone"
        fig = reference_line(fig, result.inflation, label, axis="x")
    return fig


def branching(result: BranchingFactor) -> go.Figure:
    """Branching by position: of the answers still alive, and as if none had ended.

    The second ends, or has gaps, where a few unlikely answers would stand for all.

    Raises:
        MethodError: a result without positions.
    """
    if not result.curve:
        raise MethodError("this branching factor has no curve: its answers are empty")
    fig = figure(
        title=f"Branching factor by position, {result.model}",
        x="position in the answer (tokens)",
        y="branching factor (tokens)",
        height=420,
    )
    curve = result.curve
    for name, points, estimates, colour in (
        ("answers still alive", curve, [c.survivors for c in curve], COLOURS["null"]),
        *(
            ("inverse-survival weights", run, [c.weighted for c in run], COLOURS["positive"])
            for run in _runs(curve)
        ),
    ):
        at = [c.position for c in points]
        fig.add_scatter(
            x=[*at, *at[::-1]],
            y=[*(e.high for e in estimates), *(e.low for e in estimates[::-1])],
            fill="toself",
            mode="lines",
            line={"width": 0},
            fillcolor=colour,
            opacity=0.2,
            showlegend=False,
            hoverinfo="skip",
        )
        fig.add_scatter(
            x=at,
            y=[e.value for e in estimates],
            mode="lines+markers",
            name=name,
            line={"color": colour},
            showlegend=all(t.name != name for t in fig.data),
        )
    fig.add_scatter(
        x=[c.position for c in curve],
        y=[c.alive for c in curve],
        mode="lines",
        name="fraction alive",
        line={"color": COLOURS["negative"], "dash": "dot"},
        yaxis="y2",
    )
    fig.update_layout(
        yaxis2={
            "overlaying": "y",
            "side": "right",
            "range": [0, 1.02],
            "dtick": 0.25,
            "autorange": False,
            "title": {"text": "fraction alive"},
            "showgrid": False,
        }
    )
    label = f"overall {result.factor}"
    return reference_line(fig, result.factor.value, label, role="guard")


def _runs(curve: tuple[CurvePoint, ...]) -> list[tuple[CurvePoint, ...]]:
    """Stretches of positions with enough effective samples."""
    runs: list[list[CurvePoint]] = [[]]
    for point in curve:
        if point.effective >= ENOUGH:
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [tuple(run) for run in runs if run]


def parity(result: Parity) -> go.Figure:
    """Signed differences of every pair of groups, beside the largest that chance gives."""
    rows = [
        (f"{p.first} − {p.second}", p.difference, PALETTE[0])
        for p in sorted(result.pairs, key=lambda p: p.difference.value)
    ]
    corrected = [
        (f"{p.first} − {p.second}, judge corrected", p.corrected, COLOURS["prompted"])
        for p in sorted(result.pairs, key=lambda p: p.difference.value)
        if p.corrected is not None
    ]
    fig = _rows(
        [*corrected, *rows],
        title=f"Answered, group less group, {result.model}",
        x="difference of answered requests (fraction)",
    )
    for side in (-1, 1):
        label = "95% of equal groups' largest" if side > 0 else ""
        fig = reference_line(fig, side * result.chance.q95, label, axis="x")
    fig.add_vline(x=0, line={"color": COLOURS["null"], "width": 1})
    return fig


def outcomes(result: ThreeWay) -> go.Figure:
    """Refused, deflected and answered, on the topic and on the matched questions."""
    fig = figure(title=f"What becomes of requests, {result.model}", x="", y="fraction of requests")
    for side, colour in ((result.topic, COLOURS["steered"]), (result.control, COLOURS["plain"])):
        estimates = [side.rates[name] for name in OUTCOMES]
        fig.add_bar(
            x=list(OUTCOMES),
            y=[e.value for e in estimates],
            error_y={**intervals(estimates), "color": COLOURS["null"]},
            name=side.name,
            marker_color=colour,
        )
    fig.update_layout(barmode="group")
    fig.update_yaxes(range=[0, 1.05])
    return fig


def judge_errors(result: JudgeValidation) -> go.Figure:
    """A judge's false positives and false negatives, in all and by group."""
    rows: list[tuple[str, Estimate, str]] = []
    for group in result.by_group:
        rows.append((f"false negatives, {group.about}", group.false_negative, COLOURS["negative"]))
    rows.append(("false negatives, all", result.false_negative, COLOURS["negative"]))
    for group in result.by_group:
        rows.append((f"false positives, {group.about}", group.false_positive, COLOURS["positive"]))
    rows.append(("false positives, all", result.false_positive, COLOURS["positive"]))
    fig = _rows(rows, title=f"Errors of the judge '{result.name}'", x="error rate (fraction)")
    return fig.update_xaxes(range=[-0.02, 1.02])


def _rows(rows: list[tuple[str, Estimate, str]], *, title: str, x: str) -> go.Figure:
    """One estimate a row, the first at the bottom."""
    fig = figure(title=title, x=x, height=150 + ROW * len(rows))
    fig.add_scatter(
        x=[e.value for _, e, _ in rows],
        y=[name for name, _, _ in rows],
        error_x={**intervals([e for _, e, _ in rows]), "color": COLOURS["null"]},
        mode="markers",
        marker={"size": 10, "color": [colour for _, _, colour in rows]},
        showlegend=False,
        hovertext=[str(e) for _, e, _ in rows],
        hovertemplate="%{y}: %{hovertext}<extra></extra>",
    )
    fig.update_yaxes(type="category", range=[-0.6, len(rows) - 0.4])
    return fig


def _times(estimate: Estimate, factor: float) -> Estimate:
    return Estimate(
        estimate.value * factor, estimate.low * factor, estimate.high * factor, estimate.n
    )

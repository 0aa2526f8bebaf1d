"""A probe beside its controls, and whether its probabilities are what they say."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steerkit.plotting.style import COLOURS, intervals, template
from steerkit.probing import Calibration, ProbeReport
from steerkit.statistics import Estimate, Null

ROW, TOP, BOTTOM = 30, 92, 64
"""Heights in pixels: of a row, above and below the panels."""
LEAST = 6
"""Rows that the reliability diagram needs to be read."""


def probe_controls(report: ProbeReport) -> go.Figure:
    """Held-out AUC of the probe and of every control, one a row, beside the reliability diagram.

    Points carry 95% intervals; grey bars are chance (permuted labels, random directions), from
    their mean to their 95th percentile. Controls that the probe is not shown to beat are hollow.
    On the right, the share of positives against the probability that was said, in bins of equal
    size; the diagonal is perfect calibration.
    """
    fig = make_subplots(
        rows=1,
        cols=2,
        column_widths=[0.66, 0.34],
        horizontal_spacing=0.1,
        subplot_titles=["held-out AUC (fraction of pairs in order)", "calibration"],
    )
    rows = _forest(fig, report)
    _reliability(fig, report.calibration)
    fig.update_layout(
        template=template(),
        title_text=f"{report.concept} in {report.model}: {report.verdict.replace('_', ' ')}",
        height=TOP + BOTTOM + ROW * max(rows, LEAST),
        margin={"t": TOP, "b": BOTTOM},
        autosize=True,
        showlegend=False,
    )
    for title in fig.layout.annotations:
        title.update(font_size=13, yshift=4)
    return fig


def _forest(fig: go.Figure, report: ProbeReport) -> int:
    """The rows, the probe on top; how many there are."""
    drawn: list[tuple[str, Estimate | Null, str, bool]] = [
        ("probe", report.auc, COLOURS["steered"], True)
    ]
    for arm in report.arms:
        beaten = arm.state(report.margin) == "beaten"
        colour = COLOURS["plain"] if arm is report.untrained else COLOURS["text"]
        drawn.append((arm.name, arm.auc, colour, beaten))
    for chance in (report.shaped, report.random, report.permutation):
        if chance.n:
            drawn.append((chance.name, chance, COLOURS["null"], True))
    left = report.left_out
    if left:
        drawn.append(("left-out categories", left.auc, COLOURS["prompted"], left.auc.low > 0.5))
        drawn += [
            (f"left out: {c.name}", c.auc, COLOURS["prompted"], c.auc.low > 0.5)
            for c in left.categories
        ]
    names = [name for name, *_ in drawn]
    for number, (name, value, colour, full) in enumerate(drawn):
        if isinstance(value, Null):
            _chance(fig, number, value)
            continue
        fig.add_scatter(
            x=[value.value],
            y=[number],
            error_x=intervals([value]),
            mode="markers",
            marker={
                "color": colour,
                "size": 11 if number == 0 else 9,
                "symbol": "circle" if full else "circle-open",
                "line": {"width": 2, "color": colour},
            },
            hovertemplate=f"{name}<br>AUC {value}<extra></extra>",
            row=1,
            col=1,
        )
    lowest = min(e.low if isinstance(e, Estimate) else e.mean for _, e, *_ in drawn)
    fig.add_vline(0.5, line={"dash": "dot", "color": COLOURS["null"], "width": 1}, row=1, col=1)
    fig.update_xaxes(range=[min(0.45, lowest - 0.03), 1.02], zeroline=False, row=1, col=1)
    fig.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=names,
        range=[len(names) - 0.5, -0.5],
        zeroline=False,
        row=1,
        col=1,
    )
    return len(names)


def _chance(fig: go.Figure, number: int, value: Null) -> None:
    """A bar from the mean of a null to its 95th percentile."""
    fig.add_scatter(
        x=[value.mean, value.q95],
        y=[number, number],
        mode="lines+markers",
        line={"color": COLOURS["null"], "width": 7},
        marker={
            "color": COLOURS["null"],
            "size": [0, 7],
            "symbol": "line-ns",
            "line": {"width": 3, "color": COLOURS["null"]},
        },
        hovertemplate=(
            f"{value.name}<br>mean {value.mean:.3f}, 95% below {value.q95:.3f}, "
            f"p = {value.p:.2g}<extra></extra>"
        ),
        row=1,
        col=1,
    )


def _reliability(fig: go.Figure, found: Calibration) -> None:
    """Found against said."""
    fig.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        line={"dash": "dash", "color": COLOURS["null"], "width": 1.5},
        hoverinfo="skip",
        row=1,
        col=2,
    )
    fig.add_scatter(
        x=[b.said for b in found.bins],
        y=[b.rate.value for b in found.bins],
        error_y=intervals([b.rate for b in found.bins]),
        mode="markers",
        marker={"color": COLOURS["steered"], "size": 8},
        customdata=[[b.n, str(b.rate)] for b in found.bins],
        hovertemplate=(
            "said %{x:.2f}, found %{customdata[1]}<br>%{customdata[0]} prompts<extra></extra>"
        ),
        row=1,
        col=2,
    )
    fig.update_xaxes(title_font_size=12, row=1, col=2)
    fig.update_yaxes(title_font_size=12, row=1, col=2)
    fig.update_xaxes(
        title_text="probability said", range=[-0.03, 1.03], zeroline=False, row=1, col=2
    )
    fig.update_yaxes(title_text="share positive", range=[-0.03, 1.03], zeroline=False, row=1, col=2)
    fig.add_annotation(
        x=0.02,
        y=0.98,
        xanchor="left",
        yanchor="top",
        showarrow=False,
        align="left",
        font={"size": 12},
        text=f"Brier {found.brier.value:.3f}<br>error {found.error:.3f}, "
        f"p = {found.error_null.p:.2g}",
        row=1,
        col=2,
    )

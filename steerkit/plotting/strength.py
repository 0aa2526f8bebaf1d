"""Figure of a calibration: what each strength spends, the budget, and the strengths chosen."""

import math

import plotly.graph_objects as go

from steerkit.errors import MethodError
from steerkit.plotting.style import COLOURS, PALETTE, figure, intervals, reference_line
from steerkit.searches import Calibration, Calibrations

AT_ONCE = 6
"""Curves that are told apart by colour; of more, the legend names the operators only."""


def dose_curves(calibrations: Calibrations) -> go.Figure:
    """The measured quantity against strength for every direction, with the goal as a line.

    Lines are the prompts that strengths were fitted on; a filled marker stands at the chosen
    strength with the value and 95% interval on held-out prompts, an open one where the goal
    cannot be met. A KL is drawn on a logarithmic axis too; strengths are sizes,
    without their sign, on a logarithmic axis.

    Raises:
        MethodError: nothing was calibrated.
    """
    if not len(calibrations):
        raise MethodError("nothing was calibrated, so there is nothing to draw")
    record = calibrations[0].record
    logarithmic = record.quantity == "kl"
    what = f"{record.quantity.upper()} per token, {record.statistic}" if logarithmic else (
        f"change of {record.quantity}"
    )  # fmt: skip
    fig = figure(x="strength (size)", y=f"{what} ({record.unit})", height=420)
    kinds = list(dict.fromkeys(_series(c) for c in calibrations))
    many = len(kinds) > AT_ONCE
    names = list(dict.fromkeys(c.operator if many else _series(c) for c in calibrations))
    shown: set[str] = set()
    for c in calibrations:
        name = c.operator if many else _series(c)
        colour = PALETTE[names.index(name) % len(PALETTE)]
        points = sorted((abs(s), v) for s, v in c.curve if not logarithmic or v > 0)
        fig.add_scatter(
            x=[s for s, _ in points],
            y=[v for _, v in points],
            mode="lines",
            name=name,
            legendgroup=name,
            showlegend=name not in shown,
            line={"color": colour, "width": 1.6},
            opacity=0.75,
            customdata=[_series(c)] * len(points),
            hovertemplate="%{customdata}<br>strength %{x:.3g}: %{y:.3g}<extra></extra>",
        )
        shown.add(name)
        fig.add_scatter(
            x=[abs(c.strength)],
            y=[c.achieved.value],
            error_y=intervals([c.achieved]),
            mode="markers",
            legendgroup=name,
            showlegend=False,
            marker={
                "color": colour,
                "size": 9,
                "symbol": "circle" if c.met else "circle-open",
                "line": {"width": 1.5, "color": colour},
            },
            customdata=[f"{_series(c)}: {c.explain()}<br>held out: {c.achieved}"],
            hovertemplate="%{customdata}<extra></extra>",
        )
    if any(not c.met for c in calibrations):
        fig.add_scatter(
            x=[None],
            y=[None],
            mode="markers",
            name="goal not met",
            marker={"symbol": "circle-open", "size": 9, "color": COLOURS["null"]},
        )
    fig.update_layout(legend={"y": -0.2, "yanchor": "top"}, margin_t=28)
    strengths = [abs(s) for c in calibrations for s, _ in c.curve]
    ticks = [2.0**i for i in range(math.floor(math.log2(min(strengths))), 8)]
    fig.update_xaxes(
        type="log", tickvals=ticks, ticktext=[f"{t:g}" if t >= 1 else f"1/{1 / t:g}" for t in ticks]
    )
    fig.update_xaxes(
        range=[math.log10(f * edge(strengths)) for f, edge in ((0.9, min), (1.1, max))]
    )
    if not logarithmic:
        return reference_line(fig, record.goal, f"target {record.goal:g}", role="guard")
    fig.update_yaxes(type="log", dtick=1, exponentformat="power")
    fig.add_hline(record.goal, line={"dash": "dash", "color": COLOURS["guard"], "width": 1.5})
    # On a logarithmic axis plotly places lines by value, and their labels by its logarithm.
    fig.add_annotation(
        text=f"budget {record.goal:g}",
        x=1, xref="paper", xanchor="right", y=math.log10(record.goal), yanchor="bottom",
        showarrow=False, font={"color": COLOURS["guard"], "size": 12},
    )  # fmt: skip
    return fig


def _series(c: Calibration) -> str:
    return f"{c.operator}, {c.direction.method} at {c.site}"

"""Figure of the trade-off: gain and loss with strength, their fitted shapes, the best strength."""

import numpy as np
import plotly.graph_objects as go

from steerkit.plotting.style import COLOURS, PALETTE, figure, intervals
from steerkit.searches import Tradeoff
from steerkit.searches.tradeoffs.fits import CurveFits

DASHES = {"linear": "dash", "absolute": "longdash", "square": "dot", "quadratic": "dashdot"}


def fits(result: Tradeoff) -> go.Figure:
    """Change of the behaviour (left) and loss of helpfulness (right) with strength.

    Points are means over items with 95% intervals, relative to the unsteered model; solid is the
    free exponent, drawn over the strengths it was fitted on; grey the random directions of
    equal norm. The band on the left axis is the best strength with its interval.
    """
    fig = figure(height=430)
    halves = ((result.gain, "x", "y", "gain"), (result.loss, "x2", "y2", "loss"))
    for curve, x_axis, y_axis, word in halves:
        at = {"xaxis": x_axis, "yaxis": y_axis}
        if word == "loss" and result.random_loss:
            _points(fig, result.random_loss, COLOURS["null"], "random directions", at)
            _power(fig, result.random_loss, COLOURS["null"], at, named=False)
        colour = COLOURS["steered" if word == "gain" else "negative"]
        _points(fig, curve, colour, f"{word}, mean over items", at)
        grid = _grid(curve)
        for one in curve.fits:
            if one.form != "power":
                fig.add_scatter(
                    x=grid,
                    y=one.at(grid, curve.parity),
                    mode="lines",
                    name=one.form,
                    legendgroup=one.form,
                    showlegend=word == "gain" or one.form not in {f.form for f in result.gain.fits},
                    line={"color": PALETTE[6], "width": 1.3, "dash": DASHES[one.form]},
                    hoverinfo="skip",
                    **at,
                )
        _power(fig, curve, colour, at, named=True)
        text = f"{word} ~ |x|<sup>k</sup>, k = {curve.exponent}<br>chosen: {curve.chosen}"
        if word == "loss" and result.random_loss:
            text += f"<br>random: k = {result.random_loss.exponent}"
        fig.add_annotation(
            text=text, xref=f"{x_axis} domain", yref=f"{y_axis} domain",
            x=0.03 if word == "gain" else 0.5, xanchor="left" if word == "gain" else "center",
            y=0.98, yanchor="top", align="left", showarrow=False, font={"size": 12},
        )  # fmt: skip
    best = result.optimum
    if best.value == best.value:
        fig.add_vrect(
            best.low, best.high, fillcolor=COLOURS["prompted"], opacity=0.12, line_width=0
        )
        fig.add_vline(best.value, line={"color": COLOURS["prompted"], "width": 1.5, "dash": "dash"})
        fig.add_annotation(
            text=f"best strength {best}", x=best.value, xanchor="right", xshift=-4,
            y=0.02, yref="y domain", yanchor="bottom", showarrow=False,
            font={"size": 12, "color": COLOURS["prompted"]},
        )  # fmt: skip
    unit = f"strength (multiples of the scale of {result.direction})"
    fig.update_layout(
        xaxis={"domain": [0, 0.45], "title": {"text": unit, "font": {"size": 12}}},
        yaxis={"title": {"text": f"change of the behaviour ({result.behaviour_unit})"}},
        xaxis2={"domain": [0.57, 1], "anchor": "y2", "title": {"text": unit, "font": {"size": 12}}},
        yaxis2={
            "anchor": "x2",
            "title": {"text": f"loss of helpfulness ({result.helpfulness_unit})"},
        },
        legend={"y": -0.24, "yanchor": "top"},
        margin_t=24,
    )
    return fig


def _grid(curve: CurveFits) -> "np.ndarray":
    x = np.array(curve.strengths)
    near = x[np.abs(x) <= curve.near]
    return np.linspace(min(0.0, near.min()), max(0.0, near.max()), 161)


def _points(fig: go.Figure, curve: CurveFits, colour: str, name: str, at: dict[str, str]) -> None:
    fig.add_scatter(
        x=curve.strengths,
        y=[e.value for e in curve.change],
        error_y=intervals(curve.change),
        mode="markers",
        name=name,
        marker={"color": colour, "size": 7},
        customdata=[str(e) for e in curve.change],
        hovertemplate="strength %{x:g}: %{customdata}<extra></extra>",
        **at,
    )


def _power(
    fig: go.Figure, curve: CurveFits, colour: str, at: dict[str, str], *, named: bool
) -> None:
    grid = _grid(curve)
    fig.add_scatter(
        x=grid,
        y=curve.fit("power").at(grid, curve.parity),
        mode="lines",
        name="free exponent",
        legendgroup="free exponent",
        showlegend=named and at["yaxis"] == "y",
        line={"color": colour, "width": 2.2},
        hoverinfo="skip",
        **at,
    )

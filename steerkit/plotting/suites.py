"""Figures of suites: many groups in order."""

from collections.abc import Mapping

import plotly.graph_objects as go

from steerkit.plotting.style import COLOURS, figure, reference_line
from steerkit.plotting.style import intervals as spread
from steerkit.statistics import Estimate


def ranked(estimates: Mapping[str, Estimate], *, title: str, x: str, line: float) -> go.Figure:
    """Every group with its interval, largest on top, and a line of reference.

    Args:
        estimates: by group.
        title: heading.
        x: what is measured, with its unit.
        line: value of the reference line.
    """
    order = sorted(estimates, key=lambda name: estimates[name].value)
    values = [estimates[name] for name in order]
    fig = figure(title=title, x=x, height=120 + 17 * len(order))
    fig.add_scatter(
        x=[e.value for e in values],
        y=order,
        error_x=spread(values),
        mode="markers",
        marker={"color": COLOURS["plain"], "size": 7},
        showlegend=False,
        hovertemplate="%{y}: %{x:.3f}<extra></extra>",
    )
    fig.update_yaxes(tickmode="array", tickvals=order, tickfont={"size": 11})
    return reference_line(fig, line, "", axis="x")

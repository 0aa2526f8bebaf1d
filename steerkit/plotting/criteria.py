"""One figure of all criteria: where each is high, where it wins, and who agrees with whom."""

import math

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steerkit.errors import MethodError
from steerkit.plotting.style import COLOURS, DIVERGING, SEQUENTIAL, template
from steerkit.searches.criteria import Column, CriteriaTable, Place

SHOWN = 0.05
"""Shares of resamples from here on are written into the cells."""
FURTHEST = 2.5
"""Standard deviations at which colours end."""
ROW, TOP, BOTTOM = 26, 76, 184
"""Heights in pixels: of a criterion, above and below the panels."""


def criteria_map(table: CriteriaTable) -> go.Figure:
    """All criteria over sites, one panel a position, beside their rank agreement.

    A row is a criterion. Colour is its value in standard deviations over all places, so that
    criteria of any unit can be set side by side; the box is where it is highest, and numbers are
    percentages of group resamples in which a place comes first. The last panel is the Spearman
    correlation over places between each two criteria.

    Raises:
        MethodError: a table without criteria or places.
    """
    if not table.columns or not table.places:
        raise MethodError("this table has no criteria to draw")
    labels, positions = list(table.labels), table.positions
    wide = [sum(p.position == position for p in table.places) for position in positions]
    many = len(labels)
    # A panel is as wide as it has sites, and never too narrow for its title.
    shares = [max(n, 5) for n in wide] + [max(0.62 * many, 0.45 * sum(wide), 4)]
    fig = make_subplots(
        rows=1,
        cols=len(shares),
        column_widths=[s / sum(shares) for s in shares],
        horizontal_spacing=0.018,
        shared_yaxes=True,
        subplot_titles=[f"position: {p}" for p in positions] + ["rank agreement"],
    )
    fig.update_layout(
        template=template(),
        height=TOP + BOTTOM + ROW * many,
        margin={"t": TOP, "b": BOTTOM},
        autosize=True,
        showlegend=False,
        coloraxis={
            "colorscale": SEQUENTIAL,
            "cmin": -FURTHEST,
            "cmax": FURTHEST,
            "colorbar": _bar("value<br>(sd over places)", 0.0),
        },
        coloraxis2={
            "colorscale": [list(stop) for stop in DIVERGING],
            "cmin": -1,
            "cmax": 1,
            "colorbar": _bar("Spearman", sum(shares[:-1]) / sum(shares)),
        },
    )
    for number, position in enumerate(positions, 1):
        _draw_position(fig, table, position, number)
    fig.add_heatmap(
        x=labels,
        y=labels,
        z=table.agreement,
        coloraxis="coloraxis2",
        xgap=1,
        ygap=1,
        hovertemplate="%{y} and %{x}: %{z:.2f}<extra></extra>",
        row=1,
        col=len(shares),
    )
    fig.update_xaxes(showgrid=False, tickfont_size=11, type="category", ticks="")
    fig.update_xaxes(tickangle=-60, dtick=1, col=len(shares))
    # By hand: markers would leave room around the cells.
    fig.update_yaxes(range=[many - 0.5, -0.5], showgrid=False, tickfont_size=12, ticks="")
    for title in fig.layout.annotations:
        title.update(font_size=13, yshift=4)
    return fig


def _draw_position(fig: go.Figure, table: CriteriaTable, position: str, number: int) -> None:
    """The panel of one position."""
    here = [i for i, p in enumerate(table.places) if p.position == position]
    names = _names([table.places[i] for i in here])
    z = np.array([column.z for column in table.columns])
    labels = list(table.labels)
    fig.add_heatmap(
        x=names,
        y=labels,
        z=z[:, here],
        coloraxis="coloraxis",
        text=[[_share(c, i) for i in here] for c in table.columns],
        texttemplate="%{text}",
        textfont={"size": 10 if len(table.places) <= 32 else 8},
        customdata=[[_words(c, i, table.places[i]) for i in here] for c in table.columns],
        hovertemplate="%{customdata}<extra></extra>",
        xgap=1,
        ygap=1,
        row=1,
        col=number,
    )
    for row, label in enumerate(labels):
        best = table.places.index(table.best(label))
        if best in here:
            column = here.index(best)
            fig.add_shape(
                type="rect",
                x0=column - 0.5,
                x1=column + 0.5,
                y0=row - 0.5,
                y1=row + 0.5,
                line={"width": 2.5, "color": COLOURS["steered"]},
                row=1,
                col=number,
            )
    streams = sorted({table.places[i].site.stream for i in here})
    fig.update_xaxes(
        title={"text": f"layer of {streams[0]}" if len(streams) == 1 else "site", "font_size": 12},
        tickangle=0 if len(streams) == 1 else -60,
        range=[-0.5, len(here) - 0.5],
        col=number,
    )


def _bar(title: str, x: float) -> dict[str, object]:
    """A horizontal colour bar below the panels."""
    return {
        "title": {"text": title, "side": "right", "font": {"size": 11}},
        "orientation": "h",
        "thickness": 10,
        "lenmode": "pixels",
        "len": 230,
        "x": x,
        "xanchor": "left",
        "y": 0.01,
        "yref": "container",
        "yanchor": "bottom",
        "ypad": 4,
        "tickfont": {"size": 10},
    }


def _names(places: list[Place]) -> list[str]:
    """Layers where there is one stream, else sites."""
    streams = {p.site.stream for p in places}
    return [str(p.site.layer) if len(streams) == 1 else str(p.site) for p in places]


def _share(column: Column, i: int) -> str:
    """How often a place wins, in per cent, where that is often enough to be read."""
    if not column.chosen or column.chosen[i] < SHOWN:
        return ""
    return f"{100 * column.chosen[i]:.0f}"


def _words(column: Column, i: int, place: Place) -> str:
    error = "" if math.isnan(column.errors[i]) else f" ± {column.errors[i]:.2g}"
    share = f"<br>first in {column.chosen[i]:.0%} of resamples" if column.chosen else ""
    chance = f"<br>largest anywhere: p = {column.null.p:.3g}" if column.null else ""
    return (
        f"{column.label} at {place}<br>{column.values[i]:.4g}{error} {column.unit}{share}{chance}"
    )

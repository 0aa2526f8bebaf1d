"""Figures of suites: curves over layers, rates of several arms, many groups in order.

Each is one panel, so that it reads on a phone; baselines are drawn and named in the legend.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from steerkit.plotting.style import COLOURS, PALETTE, figure, reference_line
from steerkit.plotting.style import intervals as spread
from steerkit.statistics import Estimate

ARMS: Mapping[str, str] = {
    "model": COLOURS["negative"],
    "steered": COLOURS["steered"],
    "against": COLOURS["prompted"],
}
"""Arm of an audit -> its colour in every figure."""
ROW = 19
"""Height of one interval in a figure of rows, in pixels."""
BAND = 0.18


def layer_curve(
    sites: Sequence[str],
    curves: Mapping[str, Sequence[Estimate]],
    *,
    y: str,
    x: str = "layer",
    nulls: Mapping[str, Sequence[float]] | None = None,
    references: Mapping[str, float] | None = None,
    colours: Mapping[str, str] | None = None,
    title: str = "",
) -> go.Figure:
    """Curves over layers with bands of their 95% intervals, beside chance and baselines.

    Args:
        sites: in forward order, such as `resid_post@3`; one stream is named by the axis alone.
        curves: name -> a number at every site.
        y: what is measured, with its unit: `"held-out AUC (fraction of pairs in order)"`.
        x: title of the axis where the sites are of one stream, else `site`.
        nulls: name -> what chance gives at every site; dotted.
        references: name -> a number that holds at no site, such as the words alone; dashed.
        colours: of curves and references; by default in the palette's order, baselines grey.
        title: heading.

    >>> flat = [Estimate(0.5, 0.4, 0.6, 9)] * 2
    >>> layer_curve(["resid_post@0", "resid_post@1"], {"probe": flat}, y="AUC").layout.height
    400
    """
    streams = {site.partition("@")[0] for site in sites}
    one = len(streams) == 1 and all("@" in site for site in sites)
    at = [site.partition("@")[2] for site in sites] if one else list(sites)
    fig = figure(title=title, x=f"{x} ({streams.pop()})" if one else "site", y=y, height=400)
    given = dict(colours or {})
    for (name, values), default in zip(curves.items(), _palette(len(curves)), strict=True):
        _banded(fig, at, name, values, given.get(name, default))
    for name, chance in (nulls or {}).items():
        fig.add_scatter(
            x=at,
            y=list(chance),
            name=name,
            mode="lines",
            line={"color": given.get(name, COLOURS["null"]), "dash": "dot", "width": 2},
        )
    for (name, value), dash in zip((references or {}).items(), _dashes(references), strict=True):
        fig.add_scatter(
            x=at,
            y=[value] * len(at),
            name=name,
            mode="lines",
            line={"color": given.get(name, COLOURS["text"]), "dash": dash, "width": 2},
        )
    fig.update_xaxes(type="category")
    return _legend_below(fig)


@dataclass(frozen=True)
class Series:
    """One estimate a row, of one arm.

    Attributes:
        name: in the legend.
        rows: name of the row -> number.
        colour: of its marks.
        hollow: whether marks are outlines, for a control.
    """

    name: str
    rows: Mapping[str, Estimate]
    colour: str
    hollow: bool = False


def side_by_side(
    series: Sequence[Series], *, x: str, lines: Mapping[str, float] | None = None, title: str = ""
) -> go.Figure:
    """Rows with a mark and its 95% interval for each series, one below the other.

    Args:
        series: in the order of the legend; a row that one of them lacks is left free there.
        x: what is measured, with its unit.
        lines: name -> a vertical line, such as the bound that decides.
        title: heading.
    """
    rows = list(dict.fromkeys(row for one in series for row in one.rows))
    step = 0.7 / max(1, len(series))
    height = 150 + ROW * (len(rows) * len(series) + len(rows)) + 22 * len(series)
    fig = figure(title=title, x=x, height=height)
    for number, one in enumerate(series):
        drawn = {row: e for row, e in one.rows.items() if e.n}
        fig.add_scatter(
            x=[e.value for e in drawn.values()],
            y=[rows.index(row) + step * (number - (len(series) - 1) / 2) for row in drawn],
            error_x={**spread(list(drawn.values())), "color": one.colour},
            mode="markers",
            name=one.name,
            marker={
                "color": one.colour,
                "size": 9,
                "symbol": "circle-open" if one.hollow else "circle",
                "line": {"width": 2, "color": one.colour},
            },
            text=list(drawn),
            customdata=[str(e) for e in drawn.values()],
            hovertemplate="%{text}: %{customdata}",
        )
    for name, value in (lines or {}).items():
        fig = reference_line(fig, value, name, role="guard", axis="x")
    fig.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(rows))),
        ticktext=[row.replace(": ", ":<br>") for row in rows],
        range=[len(rows) - 0.5, -0.5],
        zeroline=False,
    )
    fig.update_layout(showlegend=len(series) > 1)
    return _legend_below(fig)


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
    fig = figure(title=title, x=x, height=max(210, 130 + 17 * len(order)))
    fig.update_layout(margin_t=56 if title else 28)
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
    return reference_line(_small_titles(fig), line, "", axis="x")


def _banded(
    fig: go.Figure, at: list[str], name: str, values: Sequence[Estimate], colour: str
) -> None:
    """A curve, its band, and the intervals kept in the trace for `numbers`, undrawn."""
    for ends, fill in (([e.high for e in values], None), ([e.low for e in values], "tonexty")):
        fig.add_scatter(
            x=at,
            y=ends,
            mode="lines",
            line={"width": 0, "color": colour},
            fill=fill,
            fillcolor=_faint(colour),
            legendgroup=name,
            showlegend=False,
            hoverinfo="skip",
        )
    fig.add_scatter(
        x=at,
        y=[e.value for e in values],
        error_y={**spread(values), "visible": len(at) == 1},
        mode="lines+markers",
        name=name,
        line={"color": colour, "width": 2.5},
        marker={"size": 7},
        legendgroup=name,
        customdata=[str(e) for e in values],
        hovertemplate="%{x}: %{customdata}",
    )


def _faint(colour: str) -> str:
    r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({r},{g},{b},{BAND})"


def _palette(n: int) -> list[str]:
    return [PALETTE[i % (len(PALETTE) - 1)] for i in range(n)]


def _dashes(references: Mapping[str, float] | None) -> list[str]:
    """Baselines of one colour are told apart by their dashes."""
    return [("dash", "longdashdot", "dashdot")[i % 3] for i in range(len(references or {}))]


def _legend_below(fig: go.Figure) -> go.Figure:
    """The legend under the figure, where it has the whole width of a phone."""
    top = 56 if fig.layout.title.text else 28
    room = fig.layout.height - top - 90
    fig.update_layout(legend={"y": -62 / room, "yanchor": "top"}, margin={"t": top})
    return _small_titles(fig)


def _small_titles(fig: go.Figure) -> go.Figure:
    """Axis titles that fit the width of a phone."""
    return fig.update_xaxes(title_font_size=12).update_yaxes(title_font_size=12)

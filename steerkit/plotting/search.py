"""Figures of searches: site by strength, dose response, one null distribution.

Figures of a whole sweep for a report are in `plotting.sweep`.
"""

import math

import numpy as np
import plotly.graph_objects as go

from steerkit.errors import MethodError
from steerkit.plotting.style import COLOURS, SEQUENTIAL, figure, intervals, reference_line
from steerkit.searches import DoseResponse, NullDraws, Sweep, SweepRow

CHOSEN, OVER = "★", "✕"
ROOM = 10
"""Columns up to which a cell has room for a number and its interval."""


def heat_map(sweep: Sweep) -> go.Figure:
    """Effect on the objective at every site and setting, on the selection prompts.

    Rows are sites, the deepest at the top; columns are operator, positions and strength.
    Cells that break the guard are crossed, the star is the choice; where there is room, cells
    hold their numbers. The scale's zero is the plain model.

    Raises:
        MethodError: a sweep without candidates.
    """
    if not sweep.rows:
        raise MethodError("this sweep has no candidates to draw")
    many = len({r.method for r in sweep.rows}) > 1
    sites = [str(s) for s in sorted({r.site for r in sweep.rows})]
    columns = list(dict.fromkeys(_setting(r, many) for r in sweep.rows))
    best = {(str(r.site), _setting(r, many)): r for r in sweep.rows}
    cells = [[best.get((site, column)) for column in columns] for site in sites]
    values = [[math.nan if r is None else r.effect.value for r in line] for line in cells]
    roomy = len(columns) <= ROOM
    fig = figure(height=300 + (46 if roomy else 34) * len(sites))
    top = max(1.0 if sweep.unit == "fraction" else 0.0, float(np.nanmax(values)))
    fig.add_heatmap(
        x=columns,
        y=sites,
        z=values,
        zmin=min(0.0, float(np.nanmin(values))),
        zmax=top or 1.0,
        colorscale=SEQUENTIAL,
        colorbar={
            "title": {"text": f"effect<br>({sweep.unit})"},
            "thickness": 14,
            "lenmode": "pixels",
            "len": 150,
            "y": 1,
            "yanchor": "top",
        },
        customdata=[["" if r is None else _words(r) for r in line] for line in cells],
        hovertemplate="%{customdata}<extra></extra>",
        # Numbers where there is room for them; otherwise they are in the hover text.
        text=[["" if r is None else _cell(r, sweep) for r in line] for line in cells],
        texttemplate="%{text}" if roomy else "",
        textfont={"size": 11},
        xgap=2,
        ygap=2,
    )
    if not roomy:
        _mark(fig, [r for r in sweep.rows if not r.allowed], many, "over the guard", "x-thin", 8)
        _mark(fig, [sweep.best] if sweep.found else [], many, "chosen", "star", 15)
    fig.update_xaxes(tickangle=-40, showgrid=False)
    fig.update_yaxes(showgrid=False)
    fig.add_annotation(
        text=f"plain model: {sweep.objective} {sweep.plain}"
        + (f"; {CHOSEN} chosen, {OVER} over the guard" if roomy else ""),
        x=1, xref="paper", xanchor="right", y=1.02, yref="paper", yanchor="bottom",
        showarrow=False, font={"size": 12},
    )  # fmt: skip
    fig.update_layout(margin_t=40)
    return fig


def dose(response: DoseResponse) -> go.Figure:
    """Log-odds against strength, with the band of random directions of equal size.

    The band holds 95% of the random directions at each strength, the thin lines are their
    extremes; the dashed line is the plain model.
    """
    fig = figure(
        x=f"strength (multiples of the scale of {response.direction})",
        y="log-odds of the answers (nats)",
    )
    x = list(response.strengths)
    plain = response.log_odds[response.strengths.index(0.0)].value
    if response.random:
        curves = plain + np.array(response.random)
        low, high = np.quantile(curves, [0.025, 0.975], axis=0)
        band = {"mode": "lines", "hoverinfo": "skip", "legendgroup": "random"}
        fig.add_scatter(x=x, y=high, line_width=0, showlegend=False, **band)
        fig.add_scatter(
            x=x,
            y=low,
            line_width=0,
            fill="tonexty",
            fillcolor="rgba(154,154,154,0.35)",
            name=f"95% of {len(curves)} random directions",
            **band,
        )
        for extreme in (curves.min(0), curves.max(0)):
            fig.add_scatter(
                x=x,
                y=extreme,
                line={"color": COLOURS["null"], "width": 1, "dash": "dot"},
                showlegend=False,
                **band,
            )
    fig.add_scatter(
        x=x,
        y=[e.value for e in response.log_odds],
        error_y=intervals(response.log_odds),
        mode="lines+markers",
        name=f"direction, slope {response.slope} nats per gap",
        line={"color": COLOURS["steered"], "width": 2.5},
        marker={"size": 8},
        customdata=[str(e) for e in response.log_odds],
        hovertemplate="strength %{x:g}: %{customdata} nats<extra></extra>",
    )
    fig.update_layout(legend={"y": -0.24, "yanchor": "top"}, margin_t=32)
    return reference_line(fig, plain, "plain model", role="plain")


def null_histogram(null: NullDraws, *, unit: str = "fraction") -> go.Figure:
    """What random directions gave, and where the observed value stands.

    Raises:
        MethodError: no draws.
    """
    if not null.draws:
        raise MethodError("there are no random draws to show; search with n_random > 0")
    found = null.null
    fig = figure(x=f"effect ({unit})", y="random directions", height=300)
    low, high = min(*null.draws, null.observed), max(*null.draws, null.observed)
    width = (high - low) / 40 or 1.0
    fig.add_histogram(
        x=list(null.draws),
        name=null.name,
        marker_color=COLOURS["null"],
        # One bin's room on both sides, so that values at the ends are not cut.
        xbins={"start": low - width / 2, "end": high + 1.5 * width, "size": width},
        hovertemplate="%{x}: %{y} directions<extra></extra>",
    )
    fig.update_xaxes(range=[low - 2 * width, high + 4 * width])
    fig.update_layout(margin_t=44, showlegend=False)
    fig.add_annotation(
        text=f"{null.name}: {found.n} draws, max {found.maximum:.3g}, p = {found.p:.3g}",
        x=0, xref="paper", xanchor="left", y=1.06, yref="paper", yanchor="bottom",
        showarrow=False, font={"size": 12},
    )  # fmt: skip
    fig.add_vline(null.observed, line={"color": COLOURS["steered"], "width": 2, "dash": "dash"})
    # On the inner side of the line: at the edge a label would leave the page.
    inside = null.observed > (low + high) / 2
    fig.add_annotation(
        text=f"observed {null.observed:.3g}",
        x=null.observed, xanchor="right" if inside else "left", xshift=-6 if inside else 6,
        y=0.96, yref="paper", yanchor="top", showarrow=False,
        font={"size": 12, "color": COLOURS["steered"]},
    )  # fmt: skip
    return fig


def _mark(
    fig: go.Figure, rows: list[SweepRow], many: bool, name: str, symbol: str, size: int
) -> None:
    """Mark cells of the heat map."""
    if not rows:
        return
    fig.add_scatter(
        x=[_setting(r, many) for r in rows],
        y=[str(r.site) for r in rows],
        mode="markers",
        name=name,
        marker={
            "symbol": symbol,
            "size": size,
            "color": COLOURS["steered"],
            "line": {"width": 1.5, "color": COLOURS["steered"]},
        },
        hoverinfo="skip",
    )


def _cell(row: SweepRow, sweep: Sweep) -> str:
    """Effect with its interval, on two lines, and what it is marked by."""
    e = row.effect
    mark = CHOSEN if sweep.found and row is sweep.best else "" if row.allowed else OVER
    return f"{mark} {e.value:.2f}".strip() + f"<br>[{e.low:.2f}, {e.high:.2f}]"


def _setting(row: SweepRow, many: bool) -> str:
    """The column of a candidate: everything but its site."""
    strength = "" if row.strength == 1 else f" x{row.strength:g}"
    method = f", {row.method}" if many else ""
    return f"{row.how}{strength}, {row.positions}{method}"


def _words(row: SweepRow) -> str:
    kl = "".join(f"<br>{g} {d.mean} {d.mean.unit}" for g, d in row.damages.items())
    return f"{row}<br>effect {row.effect}{kl}<br>|delta h| {row.size:.3g}"

"""Figures of a search: what each candidate does, what it costs, and what chance reaches."""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from steerkit.errors import MethodError
from steerkit.plotting.style import COLOURS, PALETTE, figure, intervals, reference_line
from steerkit.searches import NullDraws, Sweep, SweepRow

AT_ONCE = 6
"""Series that are told apart by colour."""


def by_layer(sweep: Sweep) -> go.Figure:
    """The objective while steered, by layer: the best candidate of each operator and rule.

    Only the chosen strength is compared, where an operator was tried at it: at its best one
    nearly everything works. Filled where the guard is met, open where it is not (drawn only
    where none of that kind meets it); the dashed line is the plain model, the star the choice.
    """
    fig = figure(x="layer", y=_axis(sweep), height=420)
    kinds = list(dict.fromkeys(_kind(r) for r in sweep.rows))[:AT_ONCE]
    layers = sorted({r.site.layer for r in sweep.rows})
    for number, kind in enumerate(kinds):
        same = _alike([r for r in sweep.rows if _kind(r) == kind], sweep)
        own = [_strongest([r for r in same if r.site.layer == layer]) for layer in layers]
        rows = [r for r in own if r is not None]
        # Side by side, or intervals of several kinds would hide one another.
        shift = 0.07 * (number - (len(kinds) - 1) / 2)
        fig.add_scatter(
            x=[r.site.layer + shift for r in rows],
            y=[r.value.value for r in rows],
            error_y=intervals([r.value for r in rows]),
            mode="lines+markers",
            name=kind,
            line={"color": PALETTE[number % len(PALETTE)]},
            marker={
                "size": 9,
                "symbol": ["circle" if r.allowed else "circle-open" for r in rows],
            },
            customdata=[[str(r), f"{r.value}", _cost(r)] for r in rows],
            hovertemplate="%{customdata[0]}<br>%{customdata[1]}<br>%{customdata[2]}<extra></extra>",
        )
    if sweep.found:
        best = sweep.best
        fig.add_scatter(
            x=[best.site.layer],
            y=[best.value.value],
            mode="markers",
            name="chosen",
            marker={"symbol": "star", "size": 16, "color": COLOURS["text"]},
            hovertemplate=f"chosen: {best}<extra></extra>",
        )
    fig.update_xaxes(tickvals=layers if len(layers) <= 24 else None)
    fig.update_layout(legend={"y": -0.22, "yanchor": "top"}, margin_t=24)
    _percent(fig, sweep)
    return reference_line(fig, sweep.plain.value, "plain model")


def trade_off(sweep: Sweep) -> go.Figure:
    """Every candidate: its effect against the damage to guarded prompts; dashed: the guard.

    The line is the Pareto front: what no other candidate beats in effect without more damage.
    Open markers break some guard.

    Raises:
        MethodError: the search had no guard.
    """
    rows = [r for r in sweep.rows if r.guard is not None]
    if not rows:
        raise MethodError("this search had no guard, so there is no cost to draw")
    fig = figure(x=f"damage to guarded prompts: {sweep.cost}", y=f"effect on {_axis(sweep)}")
    kinds = list(dict.fromkeys(_kind(r) for r in rows))[:AT_ONCE]
    for number, kind in enumerate(kinds):
        own = [r for r in rows if _kind(r) == kind]
        fig.add_scatter(
            x=[r.guard.value for r in own if r.guard],
            y=[r.effect.value for r in own],
            mode="markers",
            name=kind,
            marker={
                "size": 9,
                "opacity": 0.8,
                "color": PALETTE[number % len(PALETTE)],
                "symbol": ["circle" if r.allowed else "circle-open" for r in own],
            },
            customdata=[[str(r), f"{r.effect}", _cost(r)] for r in own],
            hovertemplate="%{customdata[0]}<br>effect %{customdata[1]}<br>"
            "%{customdata[2]}<extra></extra>",
        )
    front = [r for r in sweep.pareto if r.guard]
    fig.add_scatter(
        x=[r.guard.value for r in front if r.guard],
        y=[r.effect.value for r in front],
        mode="lines+markers",
        name="Pareto front",
        line={"color": COLOURS["null"], "width": 1.5, "shape": "hv"},
        marker={"symbol": "circle-open", "size": 15, "line": {"width": 1.5}},
        hoverinfo="skip",
    )
    fig.update_layout(legend={"y": -0.25, "yanchor": "top"}, margin_t=32)
    fig.add_vline(sweep.guard_max, line={"dash": "dash", "color": COLOURS["guard"], "width": 1.5})
    # Costs span decades; a loss of log-probability may also be negative.
    log = all(r.guard.value > 0 for r in rows if r.guard)
    if log:
        fig.update_xaxes(type="log", exponentformat="power", dtick=1)
    fig.add_annotation(
        text="guard", x=math.log10(sweep.guard_max) if log else sweep.guard_max, y=1, yref="paper",
        xanchor="right", yanchor="top", showarrow=False, xshift=-4,
        font={"color": COLOURS["guard"], "size": 12},
    )  # fmt: skip
    return fig


def against_chance(sweep: Sweep) -> go.Figure:
    """The chosen direction's effect beside those of random directions of the same size.

    Raises:
        MethodError: the search has no final estimate with nulls.
    """
    nulls: Sequence[NullDraws] = sweep.final.nulls if sweep.final else ()
    if not nulls:
        raise MethodError("this search ran no random directions; search with n_random > 0")
    fig = figure(x=f"effect on {_axis(sweep)}", y="random directions", height=320)
    for number, found in enumerate(nulls):
        fig.add_histogram(
            x=list(found.draws),
            name=f"{len(found.draws)} random, {found.name}",
            marker_color=(COLOURS["null"], PALETTE[5], PALETTE[3])[number % 3],
            opacity=0.75,
            xbins={"size": 0.05} if sweep.unit == "fraction" else {},
        )
    fig.update_layout(barmode="overlay", legend={"y": -0.3, "yanchor": "top"}, margin_t=32)
    return reference_line(fig, nulls[0].observed, "chosen direction", role="steered", axis="x")


def _kind(row: SweepRow) -> str:
    return f"{row.how}, {row.positions}"


def _alike(rows: list[SweepRow], sweep: Sweep) -> list[SweepRow]:
    """Those at the chosen strength, or all where none is."""
    if not sweep.found:
        return rows
    return [r for r in rows if r.strength == sweep.best.strength] or rows


def _strongest(rows: Sequence[SweepRow]) -> SweepRow | None:
    return max(rows, key=lambda r: (r.allowed, r.effect.value), default=None)


def _cost(row: SweepRow) -> str:
    told = (f"{name} {d.mean} {d.mean.unit}" for name, d in row.damages.items())
    return "<br>".join(told) or "no guard"


def _axis(sweep: Sweep) -> str:
    return f"{sweep.objective} ({sweep.unit})"


def _percent(fig: go.Figure, sweep: Sweep) -> None:
    if sweep.unit == "fraction":
        fig.update_yaxes(range=[-0.03, 1.05])

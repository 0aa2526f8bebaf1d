"""Figures of two models compared: similarity over depth, shifts of tokens and of concepts."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steerkit.comparisons.forced import MARGINAL
from steerkit.comparisons.representation_shift_result import RepresentationShift
from steerkit.comparisons.shift_steering_result import KINDS, ShiftSteering
from steerkit.comparisons.similarity_result import TITLES, Similarity
from steerkit.comparisons.token_shift_result import TokenShift
from steerkit.comparisons.transfer_result import TransferMatrix
from steerkit.errors import MethodError
from steerkit.plotting.style import (
    COLOURS,
    DIVERGING,
    PALETTE,
    SEQUENTIAL,
    figure,
    intervals,
    template,
)
from steerkit.statistics import Estimate


def similarity_map(found: Similarity) -> go.Figure:
    """CKA of all sites against all, beside every measure over the matched sites.

    Bars are 95% intervals from leaving out groups of prompts; dotted lines, in the colour of
    their measure, are the 95th percentile of what re-paired prompts give.

    Raises:
        MethodError: a result without matched sites.
    """
    if not found.pairs:
        raise MethodError("this result has no matched sites to draw")
    fig = make_subplots(
        rows=1,
        cols=2,
        column_widths=[0.42, 0.58],
        horizontal_spacing=0.14,
        subplot_titles=("CKA (debiased), all against all", "matched sites"),
    )
    streams = {s.stream for s in (*found.sites_a, *found.sites_b)}
    a, b = (
        [str(s.layer) if len(streams) == 1 else str(s) for s in sites]
        for sites in (found.sites_a, found.sites_b)
    )
    small = found.cka.size <= 100
    fig.add_heatmap(
        x=b,
        y=a,
        z=found.cka,
        zmin=float(np.nanmin(found.cka)) - 0.01,
        zmax=1,
        colorscale=SEQUENTIAL,
        texttemplate="%{z:.3f}" if small else None,
        showscale=not small,
        xgap=1,
        ygap=1,
        hovertemplate="first %{y}, second %{x}: %{z:.4f}<extra></extra>",
        row=1,
        col=1,
    )
    names = [a[i] if a[i] == b[j] else f"{a[i]} / {b[j]}" for i, j in found.pairs]
    for measure, colour in zip(found.measures, PALETTE, strict=False):
        title = TITLES[measure.name]
        fig.add_scatter(
            x=names,
            y=[v.value for v in measure.values],
            error_y=intervals(measure.values),
            name=title,
            mode="lines+markers",
            line_color=colour,
            row=1,
            col=2,
        )
        fig.add_scatter(
            x=names,
            y=[n.q95 for n in measure.nulls],
            name=f"{title}, re-paired",
            mode="lines",
            line={"color": colour, "dash": "dot", "width": 1.5},
            showlegend=False,
            hovertemplate="re-paired prompts: %{y:.3f}<extra></extra>",
            row=1,
            col=2,
        )
        if measure.control:
            fig.add_scatter(
                x=names,
                y=measure.control,
                name=f"{title}, control",
                mode="lines+markers",
                marker_symbol="x",
                line={"color": colour, "dash": "dash", "width": 1},
                showlegend=False,
                row=1,
                col=2,
            )
    what = f"layer of {streams.pop()}" if len(streams) == 1 else "site"
    first, second = (found.provenance.get(k, {}).get("name", k) for k in ("a", "b"))
    fig.update_layout(template=template(), height=430, autosize=True)
    fig.update_layout(legend={"y": 1.13, "x": 1, "xanchor": "right"}, margin={"t": 96, "b": 48})
    fig.update_xaxes(type="category", title_text=f"{what}, {second}", row=1, col=1)
    fig.update_yaxes(type="category", title_text=f"{what}, {first}", row=1, col=1)
    fig.update_xaxes(type="category", title_text=what, row=1, col=2)
    fig.update_yaxes(title_text="similarity (1 = equal)", range=[None, 1.03], row=1, col=2)
    fig.add_annotation(
        text="dotted: re-paired prompts (95th percentile)"
        + ("; crosses: control" if found.measures[0].control else ""),
        xref="x2 domain",
        yref="y2 domain",
        x=1,
        y=0.5,
        xanchor="right",
        showarrow=False,
        font={"size": 11, "color": COLOURS["null"]},
    )
    return fig


def token_shift_figure(found: TokenShift) -> go.Figure:
    """Rate of shifted tokens along the answers, beside the rate by kind of token.

    Bars are 95% intervals that resample the prompts' groups. Samples are judged beside what their
    own model gives them; the shaded part is the beginning of answers.
    """
    fig = make_subplots(
        rows=1,
        cols=2,
        column_widths=[0.6, 0.4],
        horizontal_spacing=0.14,
        subplot_titles=("along the answer", "by kind of token"),
    )

    def curve(name: str, rates: list[Estimate], role: str, dash: str = "solid") -> None:
        fig.add_scatter(
            x=list(range(1, len(rates) + 1)),
            y=[r.value for r in rates],
            error_y={**intervals(rates), "visible": dash != "dot"},
            name=name,
            mode="lines+markers",
            line={"color": COLOURS[role], "dash": dash},
            row=1,
            col=1,
        )

    curve("greedy answers", found.by_position(), "steered")
    if (s := found.sampled) is not None:
        own = (s.own_rank > MARGINAL).astype(np.float64)
        last = int(s.position.max()) + 1
        curve("sampled answers", found.by_position(sampled=True), "negative", "dash")
        under = [s.mean(own, s.position == t, unit="fraction") for t in range(last)]
        curve("samples under their own model", under, "null", "dot")
    fig.add_vrect(
        x0=0.5, x1=found.first + 0.5, fillcolor=COLOURS["null"], opacity=0.12, line_width=0
    )
    kinds = found.by_kind()
    fig.add_bar(
        y=[f"{name} ({n})" for name, (n, _) in kinds.items()],
        x=[rate.value for _, rate in kinds.values()],
        error_x=intervals([rate for _, rate in kinds.values()]),
        orientation="h",
        marker_color=COLOURS["steered"],
        showlegend=False,
        row=1,
        col=2,
    )
    fig.update_layout(template=template(), height=400, autosize=True)
    fig.update_layout(legend={"y": 1.13}, margin={"t": 96, "b": 48})
    fig.update_xaxes(title_text="token of the answer", row=1, col=1)
    fig.update_yaxes(title_text="shifted (fraction, rank above 3)", range=[-0.02, 1.02], col=1)
    fig.update_xaxes(title_text="shifted (fraction)", range=[0, 1.02], row=1, col=2)
    fig.update_yaxes(autorange="reversed", row=1, col=2)
    return fig


def representation_shift_figure(found: RepresentationShift) -> go.Figure:
    """How far each concept's states move along its own shift, less how far all states do.

    Bars are values with 95% intervals over groups; ticks are the 95th percentile of random groups
    of states of equal size. Concepts with too few states are left out.

    Raises:
        MethodError: a result in which no concept could be scored.
    """
    shown = [c for c in found.concepts if c.null.n]
    if not shown:
        raise MethodError("no concept has enough states to be drawn; give more prompts")
    names = [f"{c.index}: {' '.join(c.shift_words[:3])}".rstrip(": ") for c in shown]
    fig = figure(
        title="Shift beyond the global one",
        x="concept (what its shift reads as)",
        y="along its shift (activation units)",
    )
    fig.add_bar(
        x=names,
        y=[c.along.value for c in shown],
        error_y=intervals([c.along for c in shown]),
        marker_color=[COLOURS["steered"] if c.found else COLOURS["plain"] for c in shown],
        customdata=[[c.n_score, c.adjusted_p] for c in shown],
        hovertemplate="%{y:.3g}, %{customdata[0]} states, p %{customdata[1]:.3g}<extra></extra>",
        showlegend=False,
    )
    fig.add_scatter(
        x=names,
        y=[c.null.q95 for c in shown],
        mode="markers",
        marker={"symbol": "line-ew", "size": 34, "line": {"width": 2.5, "color": COLOURS["null"]}},
        name="random groups of equal size (95th percentile)",
        hovertemplate="random groups: %{y:.3g}<extra></extra>",
    )
    fig.update_xaxes(type="category")
    return fig


def shift_layers(
    found: Sequence[RepresentationShift], steering: ShiftSteering | None = None
) -> go.Figure:
    """Shift beyond the global one over depth; beside it what adding shifts does at each place.

    Bars are 95% intervals over groups, the dotted line random groups of states of equal size
    (95th percentile). The lower panel is what the place was chosen from; a ring marks the choice
    on other prompts. Below -1, where KL has doubled, points are drawn at -1.

    Raises:
        MethodError: no shifts.
    """
    if not found:
        raise MethodError("there are no shifts to draw")
    panels = ["states"] + (["behaviour, where to add"] if steering else [])
    fig = make_subplots(rows=len(panels), cols=1, vertical_spacing=0.2, subplot_titles=panels)
    layers = [str(one.site) for one in found]
    scale = [one.typical**2 or 1.0 for one in found]
    fig.add_scatter(
        x=layers,
        y=[one.excess.value / s for one, s in zip(found, scale, strict=True)],
        error_y=intervals(
            [
                Estimate(e.value / s, e.low / s, e.high / s, e.n)
                for e, s in zip([one.excess for one in found], scale, strict=True)
            ]
        ),
        name="concepts' own shifts",
        mode="lines+markers",
        line_color=COLOURS["steered"],
        row=1,
        col=1,
    )
    fig.add_scatter(
        x=layers,
        y=[
            0.0 if one.unchanged else one.beyond.q95 / s
            for one, s in zip(found, scale, strict=True)
        ],
        name="random groups (95th percentile)",
        mode="lines",
        line={"color": COLOURS["null"], "dash": "dot"},
        row=1,
        col=1,
    )
    fig.update_yaxes(title_text="beyond global (of the variance)", row=1, col=1)
    for rule, dash in zip(_rules(steering), ("solid", "dash"), strict=False) if steering else ():
        assert steering is not None
        places = [p for p in steering.tried if p.endswith(f", {rule}")]
        for kind, colour in zip(KINDS, (COLOURS["steered"], COLOURS["negative"]), strict=True):
            fig.add_scatter(
                x=[p.removesuffix(f", {rule}") for p in places],
                y=[max(-1.0, steering.tried[p][kind]) for p in places],
                customdata=[steering.tried[p][kind] for p in places],
                hovertemplate="%{x}: %{customdata:.3g}",
                name=f"{kind} shift, {rule}",
                mode="lines+markers",
                line={"color": colour, "dash": dash},
                row=2,
                col=1,
            )
    if steering:
        fig.add_scatter(
            x=[str(steering.site)],
            y=[steering.closed[steering.kind].value],
            error_y=intervals([steering.closed[steering.kind]]),
            name="chosen, on other prompts",
            mode="markers",
            marker={"symbol": "circle-open", "size": 14, "color": COLOURS["guard"]},
            row=2,
            col=1,
        )
        fig.update_yaxes(
            title_text="KL taken away (fraction)",
            range=[-1.05, 1.05],
            row=2,
            col=1,
        )
    fig.update_layout(template=template(), height=420 + 300 * (len(panels) - 1), autosize=True)
    fig.update_layout(
        legend={"y": -0.12, "yanchor": "top", "orientation": "h"}, margin={"t": 48, "b": 150}
    )
    fig.update_xaxes(
        type="category",
        categoryorder="array",
        categoryarray=layers,
        tickvals=layers,
        ticktext=[name.split("@")[-1] for name in layers],
        title_text="layer",
    )
    return fig


def _rules(steering: ShiftSteering | None) -> list[str]:
    places = steering.tried if steering else {}
    return list(dict.fromkeys(place.split(", ", 1)[1] for place in places))


def transfer_map(found: TransferMatrix) -> go.Figure:
    """Effects of every direction in every model, one panel an operator; boxes were found.

    Raises:
        MethodError: a matrix without cells.
    """
    if not found.cells:
        raise MethodError("this matrix has no cells to draw")
    fig = make_subplots(
        rows=1,
        cols=len(found.operators),
        shared_yaxes=True,
        horizontal_spacing=0.06,
        subplot_titles=found.operators,
    )
    most = max(abs(c.effect.value) for c in found.cells) or 1.0
    for column, operator in enumerate(found.operators, 1):
        grid = [[found.at(s, t, operator) for t in found.targets] for s in found.sources]
        fig.add_heatmap(
            x=found.targets,
            y=found.sources,
            z=[[c.effect.value for c in row] for row in grid],
            text=[[f"{c.effect.value:.2g}" for c in row] for row in grid],
            customdata=[[[str(c.effect), c.adjusted_p, c.kl] for c in row] for row in grid],
            texttemplate="%{text}",
            hovertemplate="%{y} in %{x}: %{customdata[0]}, p %{customdata[1]:.3g}, "
            "KL %{customdata[2]:.3g} nats per token<extra></extra>",
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            row=1,
            col=column,
        )
        for i, row in enumerate(grid):
            for j, cell in enumerate(row):
                if cell.found:
                    fig.add_shape(
                        type="rect", x0=j - 0.5, x1=j + 0.5, y0=i - 0.5, y1=i + 0.5,
                        line={"width": 2.5, "color": COLOURS["guard"]}, row=1, col=column,
                    )  # fmt: skip
        fig.update_xaxes(title_text="model", type="category", row=1, col=column)
        fig.update_yaxes(range=[len(grid) - 0.5, -0.5], showgrid=False, row=1, col=column)
    fig.update_layout(
        template=template(),
        height=200 + 60 * len(found.sources),
        autosize=True,
        margin={"t": 48},
        coloraxis={
            "colorscale": [list(stop) for stop in DIVERGING],
            "cmin": -most,
            "cmax": most,
            "colorbar": {
                "title": {"text": f"effect ({found.unit})", "side": "right"},
                "thickness": 12,
            },
        },
    )
    fig.update_yaxes(title_text="direction of", row=1, col=1)
    return fig

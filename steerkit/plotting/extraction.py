"""Held-out separation by layer, with its interval and what chance and words alone give."""

from collections.abc import Sequence

import plotly.graph_objects as go

from steerkit.direction import Direction, Directions, ProbeScores
from steerkit.errors import DirectionError
from steerkit.plotting.style import COLOURS, PALETTE, figure, intervals

STYLES = ("solid", "dash", "dot", "dashdot")


def auc_by_layer(directions: Directions | Sequence[Direction]) -> go.Figure:
    """AUC at every layer, one line a method (and stream), 95% intervals as error bars.

    The grey area ends at the 95th percentile of the largest AUC under permuted labels,
    corrected for every site and method tried (at each layer's own where that is missing);
    the dashed line is the baseline of the words alone with its interval.

    Raises:
        DirectionError: no direction has scores.
    """
    scored = [(d, d.scores) for d in directions if d.scores is not None]
    if not scored:
        raise DirectionError("none of these directions was scored; extract with n_folds >= 2")
    fig = figure(
        title=f"Separation of '{scored[0][0].concept}' on held-out prompts",
        x="layer",
        y="AUC (fraction of pairs in order)",
    )
    layers = sorted({d.site.layer for d, _ in scored})
    edges = [layers[0] - 0.4, layers[-1] + 0.4]
    _draw_chance(fig, edges, layers, scored)
    _draw_text(fig, edges, scored[0][1])
    series = list(dict.fromkeys((d.method, d.site.stream) for d, _ in scored))
    methods = list(dict.fromkeys(method for method, _ in series))
    streams = list(dict.fromkeys(stream for _, stream in series))
    for number, (method, stream) in enumerate(series):
        own = sorted(
            ((d, s) for d, s in scored if (d.method, d.site.stream) == (method, stream)),
            key=lambda pair: pair[0].site,
        )
        # Side by side, or intervals of several methods would hide one another.
        shift = 0.06 * (number - (len(series) - 1) / 2)
        fig.add_scatter(
            x=[d.site.layer + shift for d, _ in own],
            y=[s.auc.value for _, s in own],
            error_y=intervals([s.auc for _, s in own]),
            name=method if len(streams) == 1 else f"{method} {stream}",
            mode="lines+markers",
            line={
                "color": PALETTE[methods.index(method) % len(PALETTE)],
                "dash": STYLES[streams.index(stream) % len(STYLES)],
            },
            customdata=[
                [str(d.site), f"{s.auc}", f"{s.permutation.p:.2g}", f"{d.scale:.3g}"]
                for d, s in own
            ],
            hovertemplate=(
                "%{customdata[0]}<br>AUC %{customdata[1]}<br>p %{customdata[2]}<br>"
                "scale %{customdata[3]}"
            ),
        )
    lowest = min(min(s.auc.low, s.auc.value) for _, s in scored)
    fig.update_xaxes(tickvals=layers if len(layers) <= 24 else None, range=edges, zeroline=False)
    fig.update_layout(legend={"y": -0.2, "yanchor": "top"}, margin_t=48, height=440)
    fig.update_yaxes(range=[max(0.0, min(0.45, lowest - 0.03)), 1.02])
    return fig


def _draw_chance(
    fig: go.Figure,
    edges: Sequence[float],
    layers: Sequence[int],
    scored: Sequence[tuple[Direction, ProbeScores]],
) -> None:
    family = scored[0][1].family
    if family is not None and family.n:
        x, top = list(edges), [family.q95] * 2
        name = "permuted labels, 95% of largest"
    else:
        x = [float(layer) for layer in layers]
        top = [max(s.permutation.q95 for d, s in scored if d.site.layer == n) for n in layers]
        name = "permuted labels, 95%"
    common = {"x": x, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    fig.add_scatter(**common, y=[0.5] * len(x), showlegend=False)
    fig.add_scatter(**common, y=top, name=name, fill="tonexty", fillcolor="rgba(154,154,154,0.28)")


def _draw_text(fig: go.Figure, edges: Sequence[float], scores: ProbeScores) -> None:
    text = scores.text
    if text is None:
        return
    line = {"color": COLOURS["text"], "dash": "dash", "width": 1.5}
    common = {"x": list(edges), "mode": "lines", "legendgroup": "text"}
    fig.add_scatter(
        **common,
        y=[text.low] * 2,
        line={"width": 0},
        showlegend=False,
        hoverinfo="skip",
    )
    fig.add_scatter(
        **common,
        y=[text.high] * 2,
        line={"width": 0},
        fill="tonexty",
        fillcolor="rgba(230,159,0,0.13)",
        showlegend=False,
        hoverinfo="skip",
    )
    fig.add_scatter(
        **common,
        y=[text.value] * 2,
        line=line,
        name="words alone",
        hovertemplate=f"words alone<br>AUC {text}<extra></extra>",
    )

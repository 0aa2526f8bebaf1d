"""Figures of where it happens: patching maps, heads, the logit lens, direct contributions."""

import html
import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steerkit.errors import MethodError
from steerkit.lenses import Head, LogitAttribution, LogitLens, PatchingMap
from steerkit.plotting.style import (
    COLOURS,
    DIVERGING,
    PALETTE,
    figure,
    intervals,
    template,
)
from steerkit.site import STREAMS, Site
from steerkit.statistics import cluster_mean

MARGIN = 96
"""Height of a figure beyond its panels, in pixels."""
WASH = ((0.0, "rgba(230,159,0,0)"), (1.0, "rgba(230,159,0,0.55)"))
"""Colour scale under text: clear to amber, so that letters read on a light and a dark page."""


def patching_map(found: PatchingMap) -> go.Figure:
    """Normalised effect by layer and position, one panel a stream; heads are in `head_map`.

    Layers go up, positions to the right as the prompt reads. 0 is the corrupted run and 1 the
    clean one; what makes it worse is blue.

    Raises:
        MethodError: a map of heads alone.
    """
    sites = [p for p in found.places if isinstance(p, Site)]
    streams = [s for s in STREAMS if any(site.stream == s for site in sites)]
    if not streams:
        raise MethodError("this map holds heads alone; draw it with head_map")
    layers = sorted({site.layer for site in sites})
    top = _reach(found)
    across = not found.positions
    fig = make_subplots(
        rows=1 if across else len(streams),
        cols=len(streams) if across else 1,
        shared_xaxes=not across,
        shared_yaxes=across,
        subplot_titles=streams,
        vertical_spacing=min(0.1, 0.3 / len(streams)),
    )
    values, rows = found.normalised, {str(p): i for i, p in enumerate(found.places)}
    names = _safe(found.labels) or ["all positions"]
    for number, stream in enumerate(streams):
        index = [rows.get(str(Site(layer, stream))) for layer in layers]
        cells = [[math.nan] * len(names) if i is None else values[i].tolist() for i in index]
        fig.add_heatmap(
            x=list(range(len(names))),
            y=layers,
            z=cells,
            coloraxis="coloraxis",
            customdata=[
                [""] * len(names) if i is None else [_words(found, i, j) for j in range(len(names))]
                for i in index
            ],
            hovertemplate="%{customdata}<extra></extra>",
            xgap=1,
            ygap=1,
            row=1 if across else number + 1,
            col=number + 1 if across else 1,
        )
    size = 26 if len(layers) <= 12 else 14
    height = MARGIN + (1 if across else len(streams)) * (size * len(layers) + 44)
    _dress(fig, top, height)
    fig.update_yaxes(tickvals=_ticks(layers), showgrid=False, zeroline=False)
    fig.update_yaxes(title_text="layer", col=1)
    fig.update_xaxes(
        showgrid=False, zeroline=False, tickangle=-50, tickvals=list(range(len(names)))
    )
    if across:
        fig.update_xaxes(showticklabels=False, ticks="")
    else:
        fig.update_xaxes(ticktext=names, row=len(streams))
    return fig


def head_map(found: PatchingMap, *, position: int | None = -1) -> go.Figure:
    """Normalised effect of every attention head, layer by head, at one position.

    Args:
        found: a map with heads.
        position: from the end; of no matter where all positions were patched at once.

    Raises:
        MethodError: a map without heads, or without that position.
    """
    heads = [p for p in found.places if isinstance(p, Head)]
    if not heads:
        raise MethodError("this map has no heads; make it with streams='heads'")
    column = position if found.positions else None
    if column not in found.columns:
        raise MethodError(
            f"this map has no position {position}; it has {found.positions[0]} to "
            f"{found.positions[-1]}"
        )
    j = found.columns.index(column)
    layers, n = sorted({h.layer for h in heads}), 1 + max(h.head for h in heads)
    values, rows = found.normalised, {str(p): i for i, p in enumerate(found.places)}
    index = [[rows.get(str(Head(layer, head))) for head in range(n)] for layer in layers]
    fig = figure(x="head", y="layer")
    fig.add_heatmap(
        x=list(range(n)),
        y=layers,
        z=[[math.nan if i is None else values[i, j] for i in line] for line in index],
        coloraxis="coloraxis",
        customdata=[["" if i is None else _words(found, i, j) for i in line] for line in index],
        hovertemplate="%{customdata}<extra></extra>",
        xgap=2,
        ygap=2,
    )
    where = "all positions" if column is None else f"position {_safe(found.labels)[j]}"
    _dress(fig, _reach(found), MARGIN + 40 + (28 if len(layers) <= 12 else 14) * len(layers))
    fig.add_annotation(
        text=where, x=0, xref="paper", xanchor="left", y=1.02, yref="paper", yanchor="bottom",
        showarrow=False, font={"size": 12},
    )  # fmt: skip
    fig.update_yaxes(tickvals=_ticks(layers), showgrid=False, zeroline=False)
    fig.update_xaxes(tickvals=_ticks(list(range(n))), showgrid=False, zeroline=False)
    return fig


def agreement(exact: PatchingMap, estimate: PatchingMap) -> go.Figure:
    """Attribution against activation patching, one point a cell; on the line they agree.

    Raises:
        MethodError: maps that share fewer than three cells.
    """
    r = exact.agreement(estimate)
    fig = figure(x=f"{exact.method} (fraction of the gap)", y=f"{estimate.method}", height=420)
    found = estimate.normalised
    at = estimate.cells
    kinds: dict[str, list[tuple[float, float, str]]] = {}
    for i, place in enumerate(exact.places):
        kind = str(place.stream) if isinstance(place, Site) else "heads"
        for j, column in enumerate(exact.columns):
            if (str(place), column) in at:
                label = f"{place} {_safe(exact.labels)[j] if exact.labels else ''}"
                point = (exact.normalised[i, j], found[at[str(place), column]], label)
                kinds.setdefault(kind, []).append(point)
    for number, (kind, points) in enumerate(kinds.items()):
        x, y, text = zip(*points, strict=True)
        fig.add_scatter(
            x=x, y=y, text=text, mode="markers", name=kind,
            marker={"size": 8, "color": PALETTE[number % len(PALETTE)], "opacity": 0.75},
            hovertemplate="%{text}<br>patched %{x:.3g}, estimated %{y:.3g}<extra></extra>",
        )  # fmt: skip
    ends = np.array([p[:2] for points in kinds.values() for p in points])
    low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
    fig.add_scatter(
        x=[low, high], y=[low, high], mode="lines", showlegend=False, hoverinfo="skip",
        line={"dash": "dash", "color": COLOURS["null"], "width": 1.5},
    )  # fmt: skip
    fig.add_annotation(
        text=f"correlation {r:.2f}", x=1, xref="paper", xanchor="right", y=1.02, yref="paper",
        yanchor="bottom", showarrow=False, font={"size": 12},
    )  # fmt: skip
    fig.update_layout(margin_t=44)
    return fig


def lens_map(found: LogitLens, *, prompt: int = 0) -> go.Figure:
    """The likeliest token at every site and position of one prompt; colour is its probability.

    Sites go up; the top row is what comes closest to the model's own prediction.

    Raises:
        MethodError: no such prompt.
    """
    if not 0 <= prompt < len(found.prompts):
        raise MethodError(f"no prompt {prompt}: the lens read {len(found.prompts)}")
    keep = [j for j in range(len(found.positions)) if found.top_tokens[prompt, 0, j, 0] >= 0]
    tokens = found.prompts[prompt]
    names = _safe([tokens[found.positions[j]] for j in keep])
    top, p = found.top_tokens[prompt][:, keep, :], found.top_probs[prompt][:, keep, :]
    sites = [str(s) for s in found.sites]
    fig = figure(height=MARGIN + 30 * len(sites) + 30)
    fig.add_heatmap(
        x=list(range(len(keep))),
        y=list(range(len(sites))),
        z=p[..., 0].tolist(),
        zmin=0,
        zmax=1,
        colorscale=[list(stop) for stop in WASH],
        customdata=[
            ["<br>".join(_likely(found, top[i, j], p[i, j])) for j in range(len(keep))]
            for i in range(len(sites))
        ],
        hovertemplate="%{customdata}<extra></extra>",
        colorbar=_bar("probability"),
        xgap=1,
        ygap=1,
    )
    size = 12 if len(keep) <= 14 else 9
    for i in range(len(sites)):
        for j in range(len(keep)):
            word = _short(found.words[int(top[i, j, 0])], 9 if len(keep) <= 14 else 7)
            fig.add_annotation(x=j, y=i, text=word, showarrow=False, font={"size": size})
    fig.update_xaxes(tickvals=list(range(len(keep))), ticktext=names, tickangle=-50)
    fig.update_yaxes(tickvals=list(range(len(sites))), ticktext=sites)
    fig.update_xaxes(showgrid=False, zeroline=False)
    fig.update_yaxes(showgrid=False, zeroline=False)
    fig.update_layout(margin_t=24)
    return fig


def lens_by_layer(
    found: LogitLens, *, what: str = "probs", names: Sequence[str] = (), position: int = -1
) -> go.Figure:
    """The followed tokens by layer at one position: mean over prompts with its interval.

    Args:
        found: a lens with followed tokens.
        what: `probs`, `logits`, `ranks`; or `entropy` or `kl`, which need no tokens.
        names: what to call the followed tokens; by default their text, where all prompts
            follow the same.
        position: from the end.

    Raises:
        MethodError: something that the lens does not hold.
    """
    axis = {
        "probs": "probability", "logits": "logit (nats)", "ranks": "rank",
        "entropy": "entropy (nats)", "kl": "KL to the model's own prediction (nats)",
    }  # fmt: skip
    fig = figure(x="layer", y=axis.get(what, what), height=360)
    each = what not in ("entropy", "kl")
    followed = range(found.tokens.shape[1]) if each else range(1)
    streams = [s for s in STREAMS if any(site.stream == s for site in found.sites)]
    for number, (stream, f) in enumerate((s, f) for s in streams for f in followed):
        sites = [site for site in found.sites if site.stream == stream]
        estimates = [found.mean(what, site, position, f) for site in sites]
        shared = each and len(set(found.tokens[:, f].tolist())) == 1
        own = found.words[int(found.tokens[0, f])] if shared else f"answer {f}"
        label = (names[f] if f < len(names) else own) if each else ""
        fig.add_scatter(
            x=[site.layer for site in sites],
            y=[e.value for e in estimates],
            error_y=intervals(estimates),
            mode="lines+markers",
            name=" ".join(
                filter(None, (_safe([label])[0], stream if len(streams) > 1 or not each else ""))
            ),
            line={"color": PALETTE[number % len(PALETTE)]},
            marker={"size": 8},
        )
    layers = sorted({site.layer for site in found.sites})
    fig.update_xaxes(tickvals=_ticks(layers))
    fig.update_layout(margin_t=44, showlegend=True)
    if what == "ranks":
        fig.update_yaxes(type="log")
    return fig


def attribution_bars(found: LogitAttribution, *, n: int = 20) -> go.Figure:
    """What each component adds, mean over prompts with its interval, in forward order.

    Of more than `n` components the largest are drawn, and the sum of the others; what is zero
    up to rounding is one of these. Bars add up to the total, which stands below.
    """
    sizes = np.abs(found.values).max(0)
    order = sorted(range(len(sizes)), key=lambda k: -abs(found.estimates[k].value))
    # What is nothing but rounding (the bias of a network without biases) is not worth a row.
    chosen = [k for k in order if sizes[k] > 1e-5 * sizes.max()][:n]
    shown = sorted(chosen)
    names = [found.components[k] for k in shown]
    estimates = [found.estimates[k] for k in shown]
    rest = [k for k in range(len(found.components)) if k not in chosen]
    if rest:
        names.append(f"{len(rest)} others")
        estimates.append(cluster_mean(found.values[:, rest].sum(1), found.groups, unit=found.unit))
    names.append("total")
    estimates.append(found.whole)
    fig = figure(x=f"{found.kind} ({found.unit})", height=MARGIN + 24 * len(names))
    colours = [COLOURS["positive" if e.value > 0 else "negative"] for e in estimates]
    fig.add_bar(
        x=[e.value for e in estimates],
        y=names,
        orientation="h",
        marker_color=[*colours[:-1], COLOURS["null"]],
        error_x={**intervals(estimates), "color": "#767676"},
        customdata=[str(e) for e in estimates],
        hovertemplate="%{y}: %{customdata}<extra></extra>",
        showlegend=False,
    )
    fig.update_yaxes(autorange="reversed", showgrid=False, zeroline=False)
    fig.update_layout(margin_t=24, bargap=0.25)
    return fig


def _dress(fig: go.Figure, top: float, height: int) -> None:
    fig.update_layout(
        template=template(),
        height=height,
        autosize=True,
        margin_t=44,
        coloraxis={
            "colorscale": [list(stop) for stop in DIVERGING],
            "cmin": -top,
            "cmax": top,
            "colorbar": _bar("0 corrupted<br>1 clean"),
        },
    )
    fig.update_annotations(font_size=13)


def _bar(title: str) -> dict[str, object]:
    return {
        "title": {"text": title},
        "thickness": 14,
        "lenmode": "pixels",
        "len": 150,
        "y": 1,
        "yanchor": "top",
    }


def _reach(found: PatchingMap) -> float:
    """The end of the colour scale: 1, or what exceeds it."""
    return max(1.0, float(np.nanmax(np.abs(found.normalised))))


def _words(found: PatchingMap, i: int, j: int) -> str:
    place, column = found.places[i], found.columns[j]
    where = "all positions" if column is None else f"position {_safe(found.labels)[j]}"
    if np.isnan(found.normalised[i, j]):
        return f"{place}, {where}: no pair is this long"
    unit = f" {found.unit}" if found.unit else ""
    return (
        f"{place}, {where}<br>{found.estimate(place, column)} of the gap"
        f"<br>{found.effects[i, j]:+.3g}{unit}"
    )


def _likely(found: LogitLens, tokens: Sequence[int], probs: Sequence[float]) -> list[str]:
    words = _safe([found.words[int(token)] for token in tokens])
    return [f"{word} {p:.3f}" for word, p in zip(words, probs, strict=True)]


def _short(word: str, at_most: int) -> str:
    return _safe([word if len(word) <= at_most else f"{word[: at_most - 1]}…"])[0]


def _safe(words: Sequence[str]) -> list[str]:
    """Words as plotly shows them literally: it reads tags, and tokens may look like them."""
    return [html.escape(word, quote=False) for word in words]


def _ticks(values: Sequence[int]) -> list[int]:
    """Every value of a short axis, some of a long one."""
    return list(values[:: -(-len(values) // 16)])

"""Figures of TCAV, BiasLens and WEAT: every score with its interval, before what chance gives."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steerkit.concepts import Association, BiasLens, Tcav, TcavCell
from steerkit.errors import MethodError
from steerkit.plotting.style import COLOURS, PALETTE, figure, intervals, template
from steerkit.site import Site

CHANCE = "rgba(154,154,154,0.28)"
N_PARTITIONS = 4_000
"""Partitions of the words that a histogram is drawn from."""


def tcav_scores(result: Tcav) -> go.Figure:
    """TCAV scores by site, and below them the mean sensitivities, one colour a concept.

    Error bars are 95% intervals. Grey is what vectors fitted to permuted labels of the same
    concept give in 95% of cases: often all of the score's range, and then the score alone says
    nothing. Filled markers are cells that are found at 5% family-wise.

    Raises:
        MethodError: a result without cells.
    """
    if not result.cells:
        raise MethodError("this TCAV result has no cells to draw")
    sites = sorted({Site.parse(cell.site) for cell in result.cells})
    places = [str(site) for site in sites]
    fig = make_subplots(
        rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.5, 0.5]
    )
    fig.update_layout(
        template=template(),
        title_text=f"{result.target} on {len(result.prompts)} prompts (filled: found)",
        height=560,
        autosize=True,
        barmode="overlay",
        margin_t=56,
        legend={"y": -0.12, "yanchor": "top"},
    )
    concepts = list(dict.fromkeys(cell.concept for cell in result.cells))
    # Side by side, or intervals of several concepts would hide one another.
    wide = 0.84 / len(concepts)
    fig.add_hline(0.5, line={"color": COLOURS["null"], "width": 1}, row=1, col=1)
    fig.add_hline(0.0, line={"color": COLOURS["null"], "width": 1}, row=2, col=1)
    for number, concept in enumerate(concepts):
        own = [cell for cell in result.cells if cell.concept == concept]
        own.sort(key=lambda cell: Site.parse(cell.site))
        shift = wide * (number - (len(concepts) - 1) / 2)
        x = [places.index(cell.site) + shift for cell in own]
        _draw_chance(fig, own, x, 0.9 * wide, first=number == 0)
        _draw_cells(fig, own, x, concept, PALETTE[number % len(PALETTE)])
    fig.update_yaxes(title_text="TCAV score<br>(fraction of prompts)", range=[-0.04, 1.04], row=1)
    fig.update_yaxes(title_text="mean sensitivity<br>(nats per strength)", row=2)
    one = len({site.stream for site in sites}) == 1
    fig.update_xaxes(
        tickvals=list(range(len(places))),
        ticktext=[str(site.layer) for site in sites] if one else places,
        range=[-0.6, len(places) - 0.4],
        zeroline=False,
    )
    fig.update_xaxes(title_text=f"layer ({sites[0].stream})" if one else "site", row=2)
    return fig


def _draw_chance(
    fig: go.Figure, own: Sequence[TcavCell], x: Sequence[float], wide: float, *, first: bool
) -> None:
    """What vectors fitted to permuted labels of the same concept reach."""
    score = [min(cell.random_score.q95, 0.5) for cell in own]
    moved = [cell.random_sensitivity.q95 for cell in own]
    for row, middle, reach in ((1, 0.5, score), (2, 0.0, moved)):
        fig.add_bar(
            x=list(x), base=[middle - r for r in reach], y=[2 * r for r in reach], width=wide,
            marker={"color": CHANCE, "line": {"width": 0}}, name="permuted labels, 95%",
            showlegend=first and row == 1, legendgroup="chance", customdata=reach,
            hovertemplate="permuted labels: up to %{customdata:.3g} from chance<extra></extra>",
            row=row, col=1,
        )  # fmt: skip


def _draw_cells(
    fig: go.Figure, own: Sequence[TcavCell], x: Sequence[float], name: str, colour: str
) -> None:
    symbols = ["circle" if cell.found else "circle-open" for cell in own]
    for row, values in ((1, [c.score for c in own]), (2, [c.sensitivity for c in own])):
        fig.add_scatter(
            x=list(x), y=[v.value for v in values], error_y=intervals(values), name=name,
            mode="markers", marker={"color": colour, "symbol": symbols, "size": 10},
            legendgroup=name, showlegend=row == 1, row=row, col=1,
            customdata=[
                [c.site, str(c.score), str(c.sensitivity), f"{c.p_adjusted:.2g}"] for c in own
            ],
            hovertemplate=(
                "%{customdata[0]}<br>score %{customdata[1]}<br>%{customdata[2]} nats per strength"
                "<br>p, Holm %{customdata[3]}"
            ),
        )  # fmt: skip


def bias_by_target(result: BiasLens) -> go.Figure:
    """The signed bias of every target, sorted, with its interval.

    Grey is what the stricter null of each target reaches in 95% of cases; filled markers are
    found at 5% family-wise. A plain-CAV ablation stands beside as crosses.

    Raises:
        MethodError: no target passes the gate anywhere.
    """
    rows = result.ranked[::-1]
    if not rows:
        raise MethodError("no target passes the gate anywhere, so there is no bias to draw")
    one, other = result.references
    fig = figure(
        title=f"Between {other} (left) and {one} (right); filled: found",
        x=f"difference of cosines, {one} less {other}",
        height=150 + 22 * len(rows),
    )
    names = [row.target for row in rows]
    reach = [float(np.nanmax([r.exchanged.q95, r.random.q95, 0.0])) for r in rows]
    if any(reach):
        fig.add_bar(
            x=[2 * r for r in reach], base=[-r for r in reach], y=names, orientation="h",
            marker={"color": CHANCE, "line": {"width": 0}}, width=0.8, name="chance, 95%",
            hoverinfo="skip",
        )  # fmt: skip
    if result.ablation is not None:
        plain = [result.ablation[name].signed.value for name in names]
        fig.add_scatter(
            x=plain, y=names, mode="markers", name=result.ablation.representation,
            marker={"color": COLOURS["plain"], "symbol": "x-thin-open", "size": 8},
        )  # fmt: skip
    fig.add_scatter(
        x=[row.signed.value for row in rows],
        y=names,
        error_x=intervals([row.signed for row in rows]),
        mode="markers",
        name=result.representation,
        marker={
            "color": COLOURS["steered"],
            "symbol": ["circle" if row.found else "circle-open" for row in rows],
            "size": 9,
        },
        customdata=[[str(row.signed), f"{row.p_adjusted:.2g}", len(row.passed)] for row in rows],
        hovertemplate=(
            "%{y} %{customdata[0]}<br>p, Holm %{customdata[1]}<br>%{customdata[2]} sites"
            "<extra></extra>"
        ),
    )
    fig.update_layout(legend={"y": 1.0, "yanchor": "bottom", "x": 0}, margin_t=84)
    fig.update_yaxes(automargin=True, tickmode="array", tickvals=names)
    return fig


def bias_by_layer(result: BiasLens, targets: Sequence[str] | None = None) -> go.Figure:
    """Bias of single targets over sites; open markers where the gate is not passed.

    Args:
        result: of `bias_lens`.
        targets: by default the three at either end.

    Raises:
        MethodError: a target that is not there.
    """
    ranked = [row.target for row in result.ranked]
    ends = list(dict.fromkeys((*ranked[:3], *ranked[-3:])))
    one, other = result.references
    fig = figure(
        title=f"Bias between {one} (+) and {other} (-) by layer",
        x="layer",
        y="difference of cosines",
        height=420,
    )
    sites = [Site.parse(site) for site in result.sites]
    layers = [site.layer for site in sites]
    fig.add_hline(0, line={"color": COLOURS["null"], "width": 1})
    for number, name in enumerate(ends if targets is None else targets):
        row = result[name]
        passed = [site in row.passed for site in result.sites]
        fig.add_scatter(
            x=layers, y=list(row.by_site), name=name, mode="lines+markers",
            line={"color": PALETTE[number % len(PALETTE)]},
            marker={"symbol": ["circle" if p else "circle-open" for p in passed], "size": 9},
            hovertemplate="layer %{x}: %{y:.3g}",
        )  # fmt: skip
    fig.update_xaxes(tickvals=layers, zeroline=False)
    fig.update_layout(legend={"y": -0.2, "yanchor": "top"}, margin_t=48)
    return fig


def bias_against_behaviour(
    result: BiasLens, behaviour: Mapping[str, float], *, name: str = "behaviour"
) -> go.Figure:
    """The bias of every target over a measure of behaviour, with Spearman's correlation.

    Args:
        result: of `bias_lens`.
        behaviour: a number a target: a rate, or a difference of log-probabilities.
        name: what it is, with its unit.

    Raises:
        MethodError: a target without a number, or fewer than four targets with a bias.
    """
    agreement = result.agreement(behaviour)
    rows = result.ranked
    one, other = result.references
    fig = figure(
        title=f"Spearman {agreement} over {agreement.n} targets",
        x=name,
        y=f"bias to {one} (+) or {other} (-)",
        height=440,
    )
    fig.add_scatter(
        x=[behaviour[row.target] for row in rows],
        y=[row.signed.value for row in rows],
        error_y=intervals([row.signed for row in rows]),
        mode="markers",
        marker={"color": COLOURS["steered"], "size": 8},
        text=[row.target for row in rows],
        hovertemplate="%{text}<br>%{x:.3g}, %{y:.3g}<extra></extra>",
        showlegend=False,
    )
    fig.update_layout(margin_t=48)
    return fig


def association_null(result: Association, *, seed: int = 0) -> go.Figure:
    """The effect size of a WEAT with its interval, over that of random partitions of the words.

    Raises:
        MethodError: an effect that has no size (all associations the same).
    """
    if not np.isfinite(result.effect.value):
        raise MethodError(f"{result.name} has no effect size: all associations are the same")
    scores, n_x = np.array(list(result.scores.values())), result.sizes[0]
    gap = scores[:n_x].mean() - scores[n_x:].mean()
    rng = np.random.default_rng(seed)
    drawn = np.stack([rng.permutation(scores) for _ in range(N_PARTITIONS)])
    # The standard deviation is that of all words, whatever set they are in.
    per_gap = result.effect.value / gap if gap else 1 / scores.std(ddof=1)
    null = (drawn[:, :n_x].mean(1) - drawn[:, n_x:].mean(1)) * per_gap
    fig = figure(
        title=f"{result.name}: d = {result.effect}, p = {result.p:.2g} two-sided",
        x="effect size d (standard deviations)",
        y="partitions of the words (fraction)",
        height=340,
    )
    fig.add_histogram(
        x=null, histnorm="probability", nbinsx=60, name="random partitions",
        marker={"color": COLOURS["null"], "line": {"width": 0}}, opacity=0.6,
    )  # fmt: skip
    top = float(np.histogram(null, 60)[0].max()) / N_PARTITIONS
    fig.add_scatter(
        x=[result.effect.value], y=[top * 0.5], error_x=intervals([result.effect]),
        mode="markers", name="observed, 95%",
        marker={"color": COLOURS["steered"], "size": 11, "symbol": "diamond"},
        hovertemplate=f"d {result.effect}<extra></extra>",
    )  # fmt: skip
    fig.add_vline(result.effect.value, line={"color": COLOURS["steered"], "width": 1.5})
    fig.update_layout(margin_t=80, bargap=0.02)
    return fig

"""SAE features: a card with contexts, how active a feature is, and what it promotes."""

from collections.abc import Sequence
from html import escape
from math import log10
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steerkit.plotting.style import COLOURS, figure, template

if TYPE_CHECKING:
    from steerkit.sae import Context, FeatureCard, FoundFeatures

SIGNAL = "213,94,0"
"""The colour of an active token, red, green and blue."""
FONT = "font-family:system-ui,-apple-system,sans-serif;font-size:13px;line-height:1.6"
FAINT = "opacity:.68"
LINE = "1px solid rgba(128,128,128,.35)"


def feature_figure(card: "FeatureCard") -> go.Figure:
    """How often which activation, and the tokens that the unembedding reads in the decoder row."""
    fig = make_subplots(
        1,
        2,
        column_widths=[0.5, 0.5],
        horizontal_spacing=0.16,
        subplot_titles=(
            f"on at {card.density:.2%} of {card.rows:,} tokens",
            "what its decoder row promotes",
        ),
    )
    centres = (card.edges[1:] + card.edges[:-1]) / 2
    width = float(card.edges[1] - card.edges[0])
    fig.add_bar(
        x=centres.tolist(),
        y=card.counts.tolist(),
        width=width,
        marker={"color": COLOURS["steered"], "line": {"width": 0}},
        hovertemplate="activation %{x:.3g}<br>%{y} tokens<extra></extra>",
        row=1,
        col=1,
    )
    towards, away = card.towards[:8], card.away[:8]
    pairs = [*away, *reversed(towards)]
    fig.add_bar(
        x=[value for _, value in pairs],
        y=list(range(len(pairs))),
        orientation="h",
        marker={
            "color": [COLOURS["positive" if v > 0 else "negative"] for _, v in pairs],
        },
        customdata=[visible(token) for token, _ in pairs],
        hovertemplate="%{customdata}<br>%{x:.3g}<extra></extra>",
        row=1,
        col=2,
    )
    fig.update_xaxes(title_text="activation (units of the feature)", row=1, col=1)
    fig.update_xaxes(range=[0, 1.02 * card.maximum or 1.0], row=1, col=1)
    most = max(1, int(card.counts.max()))
    fig.update_yaxes(
        title_text="tokens (log scale)",
        type="log",
        dtick=1,
        range=[-0.3, log10(most) + 0.1],
        row=1,
        col=1,
    )
    fig.update_xaxes(title_text="read-out (arbitrary scale)", row=1, col=2)
    fig.update_yaxes(
        tickvals=list(range(len(pairs))),
        ticktext=[escape(visible(token)) for token, _ in pairs],
        row=1,
        col=2,
    )
    fig.update_layout(template=template(), showlegend=False, height=380, autosize=True)
    fig.update_layout(margin={"t": 48}, bargap=0.25)
    fig.update_annotations(font={"size": 14})
    return fig


def features_by_auc(found: "FoundFeatures") -> go.Figure:
    """The AUC of the features that a contrast singles out, beside chance and the words alone."""
    from steerkit.plotting.style import intervals, reference_line

    items = found.items[::-1]
    fig = figure(
        title=f"Features for '{found.concept}', on groups that did not choose them",
        x="AUC (fraction of pairs in order)",
        y="feature",
        height=120 + 30 * len(items),
    )
    fig.add_scatter(
        x=[f.auc.value for f in items],
        y=[f"{f.feature} {'+' if f.sign > 0 else '-'}" for f in items],
        error_x=intervals([f.auc for f in items]),
        mode="markers",
        marker={"color": COLOURS["steered"], "size": 9},
        customdata=[f"{f.auc}, p {f.family.p:.2g} of all" for f in items],
        hovertemplate="%{customdata}<extra></extra>",
        showlegend=False,
    )
    fig.update_yaxes(type="category")
    fig = reference_line(fig, found.search.q95, "95% of permuted searches", axis="x")
    if found.text is not None:
        fig = reference_line(fig, found.text.value, "words alone", role="text", axis="x")
        fig.layout.annotations[-1].xanchor = "right"  # the words often reach 1
    fig.update_xaxes(range=[min(0.35, *(f.auc.low for f in items)), 1.02])
    return fig


def card_html(card: "FeatureCard") -> str:
    """A card without scripts: numbers, promoted tokens, contexts shaded by activation."""
    facts = (
        ("on", f"{card.density:.2%} of {card.rows:,} tokens"),
        ("mean", f"{card.mean_active:.3g}"),
        ("largest", f"{card.maximum:.3g}"),
    )
    shown = "".join(
        f"<span><span style='{FAINT}'>{name}</span> <b>{value}</b></span>" for name, value in facts
    )
    head = (
        f"<div style='font-size:17px;font-weight:600'>Feature {card.feature}</div>"
        f"<div style='{FAINT}'>{escape(card.sae.name)} · <code>{card.sae.site}</code></div>"
        f"<div style='display:flex;flex-wrap:wrap;gap:4px 22px;margin:6px 0'>{shown}</div>"
    )
    promoted = "".join(
        f"<div style='margin:2px 0'><span style='{FAINT}'>{name}</span> {_chips(tokens)}</div>"
        for name, tokens in (("promotes", card.towards), ("suppresses", card.away))
    )
    contexts = "".join(_context(context, card.maximum) for context in card.contexts)
    none = f"<div style='{FAINT}'>never on in these prompts</div>"
    return (
        f"<div style='{FONT};max-width:760px;border:{LINE};border-radius:8px;padding:14px 16px;"
        f"box-sizing:border-box'>{head}{promoted}<div style='margin-top:8px'>"
        f"{contexts or none}</div></div>"
    )


def visible(token: str) -> str:
    """A token with its white space made visible; special tokens decode to nothing."""
    return token.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥") or "∅"


def _chips(tokens: Sequence[tuple[str, float]]) -> str:
    return " ".join(
        f"<code style='border:{LINE};border-radius:4px;padding:0 5px;background:transparent;"
        f"color:inherit' title='{value:.3g}'>{escape(visible(token))}</code>"
        for token, value in tokens
    )


def _context(context: "Context", maximum: float) -> str:
    words = "".join(
        f"<span title='{value:.3g}' style='background:rgba({SIGNAL},"
        f"{0.75 * min(value / maximum, 1) if maximum > 0 else 0:.2f});border-radius:3px;"
        f"padding:1px 2px;{'outline:1.5px solid rgb(' + SIGNAL + ');' if i == context.peak else ''}"
        f"'>{escape(token.strip()) or '∅'}</span> "
        for i, (token, value) in enumerate(zip(context.tokens, context.activations, strict=True))
    )
    return (
        "<div style='display:flex;gap:10px;padding:2px 0'>"
        f"<span style='{FAINT};min-width:44px;text-align:right'>{context.value:.3g}</span>"
        f"<span style='overflow-wrap:anywhere'>{words}</span></div>"
    )

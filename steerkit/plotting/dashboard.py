"""One page of several SAE features, with their nulls; it needs no network."""

from html import escape
from math import log10
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from steerkit.plotting.features import card_html, feature_figure, features_by_auc
from steerkit.plotting.style import COLOURS, CSS, figure, script, to_div

if TYPE_CHECKING:
    from steerkit.sae import FeatureDashboard, FeatureView

BINS = 30


def view_figure(view: "FeatureView") -> go.Figure:
    """The card's figure, with what random directions promote as dashed lines on the right."""
    fig = feature_figure(view.card)
    for value in (view.promoted.q95, -view.promoted.q95):
        fig.add_vline(
            value,
            line={"dash": "dash", "color": COLOURS["null"], "width": 1.5},
            row=1,
            col=2,
        )
    reach = (
        max(abs(v) for _, v in (*view.card.towards, *view.card.away)) if view.card.towards else 1
    )
    edge = 1.08 * max(reach, view.promoted.q95)
    fig.update_xaxes(
        title_text="read-out (dashed: random, 95%)",
        range=[-edge, edge],
        row=1,
        col=2,
    )
    return fig


def sides_figure(view: "FeatureView", concept: str) -> go.Figure:
    """The largest activation of each prompt, by side of the contrast; empty without one."""
    fig = figure(
        x="largest activation in a prompt (units of the feature)",
        y="prompts (log scale)",
        height=260,
    )
    if view.sides is None:
        return fig
    top = max(1e-9, *(float(side.max(initial=0.0)) for side in view.sides))
    edges = np.linspace(0, top, BINS + 1)
    most = 1
    for side, name in zip(view.sides, ("positive", "negative"), strict=True):
        counts = np.histogram(side, edges)[0]
        most = max(most, int(counts.max()))
        fig.add_bar(
            x=((edges[1:] + edges[:-1]) / 2).tolist(),
            y=counts.tolist(),
            width=float(edges[1]),
            marker={"color": COLOURS[name], "line": {"width": 0}},
            opacity=0.6,
            name=f"{name} prompts of '{concept}'",
            hovertemplate="activation %{x:.3g}<br>%{y} prompts<extra></extra>",
        )
    fig.update_yaxes(type="log", dtick=1, range=[-0.3, log10(most) + 0.1])
    fig.update_layout(barmode="overlay", margin_t=40)
    return fig


def dashboard_page(dashboard: "FeatureDashboard") -> str:
    """The overview as a table of links, then a section for every feature."""
    head, rows = dashboard.cells()
    body = "".join(
        "<tr>"
        + "".join(
            f"<td><a href='#f{escape(cell)}'>{escape(cell)}</a></td>"
            if i == 0
            else f"<td>{escape(cell)}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    said = "".join(f"<p>{escape(line)}</p>" for line in dashboard.summary().splitlines())
    note = (
        "<p class='note'>p: how often a random direction of the same norm has a larger read-out "
        "than the feature's largest (dashed: what 5% of them exceed). Contexts are the most active "
        "ones, one a prompt: what drives a feature most, not everything it is on for.</p>"
    )
    sections = "".join(_section(view, dashboard.concept, i) for i, view in enumerate(dashboard))
    found = dashboard.found
    chosen = "" if found is None else to_div(features_by_auc(found), div_id="found")
    title = escape(f"Features of {dashboard.sae.name}")
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{title}</title><style>{CSS}{_PAGE}</style><script>{script()}</script></head>"
        f"<body><h1>{title}</h1>{said}<div class='table'><table><tr>{names}</tr>{body}</table>"
        f"</div>{note}{chosen}{sections}</body></html>"
    )


def _section(view: "FeatureView", concept: str, number: int) -> str:
    parts = [
        f"<section><a id='f{view.card.feature}'></a>{card_html(view.card)}",
        to_div(view_figure(view), div_id=f"card{number}"),
    ]
    if view.found is not None:
        f = view.found
        parts.append(
            f"<p>'{escape(concept)}': AUC {escape(str(f.auc))} on groups that did not choose it; "
            f"permuted labels {f.permutation.q95:.3f} in 5% of draws (p {f.permutation.p:.2g}), "
            f"the best of all features {f.family.q95:.3f} (p {f.family.p:.2g})</p>"
            + to_div(sides_figure(view, concept), div_id=f"sides{number}")
        )
    return "".join([*parts, "</section>"])


_PAGE = """
:root { color-scheme: light dark; }
body { font: 14px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 1.5rem auto;
  padding: 0 1rem; }
h1 { font-size: 22px; } section { margin: 2rem 0; } .note { opacity: .68; font-size: 13px; }
table { border-collapse: collapse; font-size: 13px; } .table { overflow-x: auto; }
td, th { border-bottom: 1px solid rgba(128,128,128,.3); text-align: left;
  padding: .25rem .8rem .25rem 0; white-space: nowrap; }
a { color: inherit; }
"""

"""What every figure shares: one template, colours with a meaning, intervals, HTML.

Backgrounds are transparent and text is mid-grey, so a figure reads on a light and on a dark
page; widths follow the page. Colours are Okabe and Ito's (2008), told apart by colour-blind
readers, and each stands for one thing in every figure.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import plotly.graph_objects as go

from steerkit.statistics import Estimate

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A")

COLOURS: Mapping[str, str] = MappingProxyType(
    {
        "plain": "#56B4E9",
        "steered": "#D55E00",
        "prompted": "#009E73",
        "null": "#9A9A9A",
        "positive": "#D55E00",
        "negative": "#0072B2",
        "text": "#E69F00",
        "guard": "#CC79A7",
    }
)
"""Role -> colour. `null` is whatever chance gives; `guard` is a bound not to be crossed."""

SEQUENTIAL = "Cividis"
"""Colour scale of magnitudes; reads the same to colour-blind readers."""
DIVERGING = ((0.0, "#0072B2"), (0.5, "#F2F2F2"), (1.0, "#D55E00"))
"""Colour scale of signed values; give it `zmid=0`."""

CONFIG: Mapping[str, Any] = MappingProxyType(
    {
        "responsive": True,
        "displaylogo": False,
        "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d"],
    }
)
"""Configuration for `Figure.show` and `Figure.to_html`."""

_INK = "#767676"
_GRID = "rgba(128,128,128,0.22)"


def template() -> go.layout.Template:
    """The shared look; nothing is registered globally."""
    axis = {
        "gridcolor": _GRID,
        "linecolor": _GRID,
        "zerolinecolor": "rgba(128,128,128,0.5)",
        "ticks": "outside",
        "tickcolor": _GRID,
        "automargin": True,
        "title": {"standoff": 8},
    }
    return go.layout.Template(
        layout={
            "font": {"family": "system-ui, sans-serif", "size": 14, "color": _INK},
            "title": {"font": {"size": 16}, "x": 0, "xref": "paper", "xanchor": "left"},
            "colorway": list(PALETTE),
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "hoverlabel": {"font": {"size": 13}},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "title": ""},
            "margin": {"l": 8, "r": 8, "t": 72, "b": 8},
            "xaxis": axis,
            "yaxis": axis,
        }
    )


def figure(*, title: str = "", x: str = "", y: str = "", height: int = 380) -> go.Figure:
    """An empty figure in the shared look. Axis titles carry the unit: `"KL (nats/token)"`."""
    made = go.Figure()
    made.update_layout(
        template=template(),
        title_text=title,
        xaxis_title_text=x,
        yaxis_title_text=y,
        height=height,
        autosize=True,
    )
    return made


def intervals(estimates: Sequence[Estimate]) -> dict[str, Any]:
    """`error_y` (or `error_x`) of 95% intervals, for a trace that draws the values."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, e.high - e.value) for e in estimates],
        "arrayminus": [max(0.0, e.value - e.low) for e in estimates],
        "thickness": 1.4,
        "width": 4,
    }


def reference_line(
    fig: go.Figure, value: float, label: str, *, role: str = "null", axis: str = "y"
) -> go.Figure:
    """A copy of the figure with a dashed, labelled line: a baseline, a null, a guard."""
    out = go.Figure(fig)
    draw = out.add_hline if axis == "y" else out.add_vline
    colour = COLOURS[role]
    draw(
        value,
        line={"dash": "dash", "color": colour, "width": 1.5},
        annotation={"text": label, "font": {"color": colour, "size": 12}},
    )
    return out


def to_div(fig: go.Figure, *, plotlyjs: bool = False, div_id: str | None = None) -> str:
    """An HTML fragment as wide as its place; with `plotlyjs`, the library is put inside."""
    html: str = fig.to_html(
        full_html=False,
        include_plotlyjs=plotlyjs,
        default_width="100%",
        div_id=div_id,
        config=dict(CONFIG),
    )
    return html


CSS = """
.js-plotly-plot .plotly text:not(.heatmap-label *) { fill: currentColor !important; }
.js-plotly-plot .plotly .annotation-text { fill: inherit; }
"""
"""For pages that embed figures: text follows the page's own colour, light or dark; that in the
cells of a heat map follows the cell."""


def to_page(fig: go.Figure, *, title: str) -> str:
    """A whole HTML page that shows one figure, light or dark, without a network."""
    from html import escape

    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f"<title>{escape(title)}</title><style>:root {{ color-scheme: light dark; "
        f"font-family: system-ui, sans-serif }}{CSS}</style></head>"
        f"<body><h1>{escape(title)}</h1>{to_div(fig, plotlyjs=True)}</body></html>"
    )


def script() -> str:
    """plotly's own code, for a page that must work without a network."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def from_json(data: Mapping[str, Any]) -> go.Figure:
    """A figure that was kept as JSON."""
    return go.Figure(data)

"""Figure of a fitted condition: what it reads on held-out prompts, and how places compare."""

import plotly.graph_objects as go

from steerkit.plotting.style import COLOURS, PALETTE, figure
from steerkit.searches import FoundCondition


def condition(found: FoundCondition) -> go.Figure:
    """F1 of every way to read the condition by layer (left); held-out prompts (right).

    On the left are the prompts that the choice was made on, and the star is the choice; the
    dashed line is what choosing finds in permuted labels on average. On the right every
    held-out prompt stands at the value of the measure; the line is the threshold.
    """
    fig = figure(height=400)
    streams = {o.site.stream for o in found.options}
    kinds = list(
        dict.fromkeys(
            _kind(o.measure, o.on, o.site.stream, len(streams) > 1) for o in found.options
        )
    )
    for number, kind in enumerate(sorted(kinds)):
        own = sorted(
            (
                o
                for o in found.options
                if _kind(o.measure, o.on, o.site.stream, len(streams) > 1) == kind
            ),
            key=lambda o: o.site.order,
        )
        fig.add_scatter(
            x=[o.site.layer for o in own],
            y=[o.f1 for o in own],
            mode="lines+markers",
            name=kind,
            line={"color": PALETTE[number % len(PALETTE)]},
            customdata=[[o.threshold, o.margin] for o in own],
            hovertemplate="layer %{x}: F1 %{y:.3f}<br>threshold %{customdata[0]:.3g}, "
            "margin %{customdata[1]:.2g} sd<extra></extra>",
        )
    best = found.option
    fig.add_scatter(
        x=[best.site.layer],
        y=[best.f1],
        mode="markers",
        name="chosen",
        marker={"symbol": "star", "size": 15, "color": COLOURS["text"]},
        hovertemplate=f"chosen: {found.when}<extra></extra>",
    )
    chance = found.selected.mean
    if chance == chance:
        layers = [o.site.layer for o in found.options]
        fig.add_scatter(
            x=[min(layers), max(layers)],
            y=[chance, chance],
            mode="lines",
            name="permuted labels, chosen the same way",
            line={"color": COLOURS["null"], "dash": "dash", "width": 1.5},
            hoverinfo="skip",
        )
    for side, name in ((0, "negative"), (1, "positive")):
        values = [v for v, label in found.levels if label == side]
        fig.add_box(
            x=values,
            y=[name] * len(values),
            boxpoints="all",
            jitter=0.7,
            pointpos=0,
            fillcolor="rgba(0,0,0,0)",
            line={"color": "rgba(0,0,0,0)"},
            marker={"color": COLOURS[name], "size": 5, "opacity": 0.7},
            orientation="h",
            showlegend=False,
            xaxis="x2",
            yaxis="y2",
            hovertemplate="%{x:.3g}<extra></extra>",
        )
    fig.add_shape(
        type="line", xref="x2", yref="y2 domain", x0=best.threshold, x1=best.threshold, y0=0, y1=1,
        line={"dash": "dash", "color": COLOURS["guard"], "width": 1.5},
    )  # fmt: skip
    sign = "&gt;=" if best.side == "above" else "&lt;"
    fig.add_annotation(
        text=f"holds {sign} {best.threshold:.3g}; held-out F1 {found.held_out.f1}",
        x=0.5, xref="x2 domain", xanchor="center", y=1.02, yref="paper", yanchor="bottom",
        showarrow=False, font={"size": 12},
    )  # fmt: skip
    unit = "" if best.measure == "cosine" else " (activation units)"
    fig.update_layout(
        xaxis={"domain": [0, 0.46], "title": {"text": "layer"}, "dtick": 1},
        yaxis={"title": {"text": "F1 on the selection part"}},
        xaxis2={
            "domain": [0.58, 1],
            "anchor": "y2",
            "title": {
                "text": f"{best.measure} of {best.on} at {best.site}{unit}",
                "font": {"size": 12},
            },
        },
        yaxis2={"anchor": "x2", "title": {"text": ""}},
        legend={"y": -0.24, "yanchor": "top"},
        margin_t=36,
    )
    if len({o.site.layer for o in found.options}) > 16:
        fig.update_xaxes(dtick=None, selector={"anchor": "y"})
    return fig


def _kind(measure: str, on: str, stream: str, many: bool) -> str:
    return f"{measure}, {on}" + (f", {stream}" if many else "")

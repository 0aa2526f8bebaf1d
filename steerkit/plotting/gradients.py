"""How a trained direction came to be."""

import plotly.graph_objects as go

from steerkit.direction import Direction
from steerkit.errors import DirectionError
from steerkit.plotting.style import COLOURS, PALETTE, figure

NOTHING = 0.6931471805599453
"""log 2: the preference loss of no vector."""


def training_curve(direction: Direction) -> go.Figure:
    """Losses on training and on validation pairs by epoch; the kept epoch is marked.

    The dashed line is the loss of no vector, log 2.

    Raises:
        DirectionError: a direction that was not trained.
    """
    curve = direction.provenance.get("training")
    if not curve:
        raise DirectionError(
            f"this {direction.method} direction has no training curve; train_direction leaves one"
        )
    fig = figure(
        title=f"Training of '{direction.concept}' at {direction.site}",
        x="epoch",
        y="preference loss (nats)",
    )
    epochs = [epoch["epoch"] for epoch in curve]
    for number, (part, name) in enumerate(
        (("training", "training pairs"), ("validation", "validation pairs"))
    ):
        fig.add_scatter(
            x=epochs, y=[epoch[part] for epoch in curve], name=name, mode="lines",
            line={"color": PALETTE[number]},
            customdata=[f"{epoch['norm']:.3g}" for epoch in curve],
            hovertemplate="epoch %{x}: %{y:.4f}, norm %{customdata}",
        )  # fmt: skip
    best = int(direction.provenance["best_epoch"])
    fig.add_scatter(
        x=[best], y=[curve[best]["validation"]], mode="markers", name="kept",
        marker={"color": COLOURS["steered"], "size": 10},
    )  # fmt: skip
    fig.add_hline(NOTHING, line={"color": COLOURS["null"], "dash": "dash", "width": 1.5})
    return fig

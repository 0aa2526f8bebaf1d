"""Directions for benchmarks: a vector and a length, nothing measured about them."""

from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from steerkit.direction import Direction
from steerkit.site import Site


def along(model: Any, layer: int, vector: Tensor, scale: float) -> Direction:
    """A direction of the model along a vector `[d_model]`, after block `layer`."""
    return Direction(
        unit=normalize(vector, dim=0),
        scale=scale,
        site=Site(layer),
        method="random",
        concept="random",
        positive_mean=1.0,
        negative_mean=0.0,
        model=model.info,
        pooling="last",
    )

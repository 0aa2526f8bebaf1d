"""The registry of extraction methods, and how one is fitted to many labellings at once."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.extraction.training import Training
from steerkit.protocols import Extractor
from steerkit.registry import Registry

METHODS: Registry[Extractor] = Registry("extraction method", "steerkit.extraction")
"""Every extractor by name. Writing a file that registers one is enough to add it."""


@runtime_checkable
class Many(Protocol):
    """An extractor that fits many labellings of the same rows faster than one at a time."""

    def many(
        self, rows: Training, labels: Float[Tensor, "row k"], *, seed: int
    ) -> Float[Tensor, "d_model k"]:
        """One direction for each column of labels; column 0 holds the observed labels."""
        ...


def fit_columns(
    method: Extractor, rows: Training, labels: Float[Tensor, "row k"], *, seed: int
) -> Float[Tensor, "d_model k"]:
    """Directions for each column of labels: by `many` where the method has it, else one by one."""
    if isinstance(method, Many):
        return method.many(rows, labels, seed=seed)
    one = [method(rows.x, column, rows.groups, seed=seed) for column in labels.T.long()]
    return torch.stack(one, 1)

"""Directions of a model that exists only as numbers, and operators run on plain tensors."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from steerkit.batch import Batch, Tokenized
from steerkit.direction import Direction
from steerkit.kernels.reference import apply, pack
from steerkit.program import Program
from steerkit.protocols import ModelInfo
from steerkit.site import Site

D = 12
INFO = ModelInfo(
    "planted", "llama", 4, D, 10, 64, ("resid_pre", "resid_post"), "float32", "cpu", "f" * 64
)


@pytest.fixture
def direction() -> Callable[..., Direction]:
    """Direction number `seed`: random unit, scale 4, class means -1 and 3."""

    def make(seed: int = 0, *, fingerprint: str = "f" * 64, **fields: Any) -> Direction:
        unit = torch.randn(D, generator=torch.Generator().manual_seed(seed))
        known: dict[str, Any] = {
            "unit": unit / unit.norm(),
            "scale": 4.0,
            "site": Site(2),
            "method": "mean_difference",
            "concept": "refusal",
            "positive_mean": 3.0,
            "negative_mean": -1.0,
            "model": replace(INFO, fingerprint=fingerprint),
            "pooling": "last",
        }
        return Direction(**{**known, **fields})

    return make


@pytest.fixture
def batch() -> Batch:
    """Three left-padded prompts, two with answers."""
    items = [Tokenized((1,) * 4, (2, 2)), Tokenized((1,) * 2), Tokenized((1,), (2,) * 3)]
    return Batch.collate(items, pad_id=0)


@pytest.fixture
def h(batch: Batch) -> Tensor:
    """A stream over that batch, float64."""
    g = torch.Generator().manual_seed(11)
    return 3 * torch.randn(*batch.tokens.shape, D, generator=g, dtype=torch.float64)


@pytest.fixture
def steer(batch: Batch) -> Callable[..., Tensor]:
    """Run an operator at its first site, on all rows or at the given slots."""

    def run(operator: Any, h: Tensor, slots: Any = 1) -> Tensor:
        state = batch.state(slots)
        return apply(
            pack([Program(), operator.lower(operator.sites[0])], h.device, h.dtype),
            h,
            absolute=batch.absolute,
            prompt_len=state.prompt_len,
            row=state.row,
            slot=state.slot,
        )

    return run

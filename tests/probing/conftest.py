"""Activations with a planted direction, at chosen sites and in chosen categories."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from steerkit.activations import Activations
from steerkit.prompts import Prompt
from steerkit.protocols import ModelInfo
from steerkit.site import Site

WORDS = "red blue green cat dog bird tree house river stone".split()
STREAMS = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")


def build(
    values: Tensor,
    labels: Sequence[int],
    groups: Sequence[str],
    *,
    texts: Sequence[str] | None = None,
    categories: Sequence[str] | None = None,
    seed: int = 0,
    fingerprint: str = "f" * 64,
) -> Activations:
    """Activations of rows `[prompt site d_model]`; texts are random words by default."""
    n, sites, d = values.shape
    rng = np.random.default_rng(seed)
    said = texts or [" ".join(rng.choice(WORDS, 5)) for _ in range(n)]
    prompts = tuple(Prompt(text) for text in said)
    if categories:
        prompts = tuple(replace(p, category=c) for p, c in zip(prompts, categories, strict=True))
    return Activations(
        values=values.float(),
        sites=tuple(Site(i) for i in range(sites)),
        prompts=prompts,
        labels=tuple(int(v) for v in labels),
        groups=tuple(groups),
        pooling="last",
        info=ModelInfo("toy", "llama", 6, d, 50, 64, STREAMS, "float32", "cpu", fingerprint),
        provenance={"concept": "planted"},
    )


def plant_pairs(
    n: int = 40,
    d: int = 8,
    *,
    size: float = 0.0,
    sites: int = 2,
    at: int | None = None,
    paired: bool = True,
    seed: int = 0,
    **more: Any,
) -> Activations:
    """`n` a side; at one site, or all, positives are moved along the first axis."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(2 * n, sites, d, generator=draw)
    labels = [1] * n + [0] * n
    if paired:
        values += torch.randn(n, sites, d, generator=draw).repeat(2, 1, 1)
    for site in range(sites) if at is None else [at]:
        values[:n, site, 0] += size
    groups = [f"pair{i % n}" if paired else f"prompt{i}" for i in range(2 * n)]
    return build(values, labels, groups, seed=seed, **more)


@pytest.fixture
def plant() -> Callable[..., Activations]:
    return plant_pairs


@pytest.fixture
def make() -> Callable[..., Activations]:
    return build

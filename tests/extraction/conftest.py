"""Activations with a planted direction, built without a model."""

from collections.abc import Callable, Sequence
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


def info(d_model: int, n_layers: int = 6, fingerprint: str = "f" * 64) -> ModelInfo:
    streams = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    return ModelInfo(
        "toy", "llama", n_layers, d_model, 50, 64, streams, "float32", "cpu", fingerprint
    )


def build(
    positive: Tensor,
    negative: Tensor,
    *,
    groups: Sequence[str] | None = None,
    paired: bool = False,
    texts: Sequence[str] | None = None,
    **more: Any,
) -> Activations:
    """Activations of rows `[prompt d_model]` or `[prompt site d_model]`, positives first."""
    values = torch.cat([positive, negative]).float()
    if values.ndim == 2:
        values = values[:, None]
    n_pos, n = len(positive), len(values)
    if texts is None:
        rng = np.random.default_rng(0)
        texts = [" ".join(rng.choice(WORDS, 5)) for _ in range(n)]
    if groups is None and paired:
        groups = [f"pair{i % n_pos}" for i in range(n)]
    more.setdefault("info", info(values.shape[-1]))
    return Activations(
        values=values,
        sites=tuple(Site(i) for i in range(values.shape[1])),
        prompts=tuple(Prompt(text) for text in texts),
        labels=(1,) * n_pos + (0,) * (n - n_pos),
        groups=tuple(groups or [f"prompt{i}" for i in range(n)]),
        pooling=more.pop("pooling", "last"),
        contrast_sha256="c0ffee",
        **more,
    )


def planted(
    n: int = 60,
    d: int = 16,
    *,
    size: float = 3.0,
    paired: bool = True,
    sites: int = 1,
    seed: int = 0,
    **more: Any,
) -> Activations:
    """Isotropic rows whose positives are moved by `size` along the first axis."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2 * n, sites, d, generator=generator)
    shift = torch.zeros(d)
    shift[0] = size
    shared = torch.randn(n, sites, d, generator=generator) if paired else torch.zeros(n, sites, d)
    return build(noise[:n] + shared + shift, noise[n:] + shared, paired=paired, **more)


@pytest.fixture
def make() -> Callable[..., Activations]:
    return build


@pytest.fixture
def plant() -> Callable[..., Activations]:
    return planted


@pytest.fixture
def model_info() -> Callable[..., ModelInfo]:
    return info

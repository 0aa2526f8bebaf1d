"""Faults of a published alignment index (arXiv:2506.13901) that the default does not have."""

from typing import Any

import numpy as np
import pytest
import torch

from steerkit.activations import Activations
from steerkit.evaluations import alignment_quality
from steerkit.prompts import Prompt
from steerkit.protocols import ModelInfo
from steerkit.site import Site

INFO = ModelInfo("made", "fake", 2, 6, 9, 64, ("resid_post",), "float32", "cpu", "f")
QUICK: dict[str, Any] = {"n_permutations": 99, "n_resamples": 50}


def made(values: torch.Tensor, labels: list[int]) -> Activations:
    words = np.random.default_rng(0).choice(list("abcdefgh"), (len(labels), 5))
    return Activations(
        values.float()[:, None], (Site(0),), tuple(Prompt(" ".join(w)) for w in words),
        tuple(labels), tuple(f"g{i}" for i in range(len(labels))), "mean_prompt", INFO,
    )  # fmt: skip


def test_clusters_that_labels_know_nothing_of_count_nothing() -> None:
    """A picture of states (t-SNE) has clusters even where states have none, and indices taken in it
    read them (arXiv:2506.13901). Ours are taken where the states lie: two blobs, each holding as
    many of either side, are no alignment."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 6, generator=generator)
    x[::2, 0] += 20
    labels = [(i // 2) % 2 for i in range(60)]
    found = alignment_quality(made(x, labels), **QUICK)
    assert found.quality.value < 5 and found.null.p > 0.05
    x[:, 1] += 12 * torch.tensor(labels)
    planted = alignment_quality(made(x, labels), **QUICK)
    assert planted.null.p == 0.01


def test_the_index_of_one_model_does_not_hang_on_which_others_were_ranked_with_it() -> None:
    """Scaled from least to most over a run's own rows, every model ends at the same few numbers
    (arXiv:2506.13901): 55 and 5. Ours has a fixed scale: the same states, the same number."""
    generator = torch.Generator().manual_seed(1)
    labels = [i % 2 for i in range(40)]
    x = torch.randn(40, 6, generator=generator) + torch.tensor(labels)[:, None]
    alone = alignment_quality(made(x, labels), **QUICK)
    beside = alignment_quality(made(x, labels), against=made(3 * x + 1, labels), **QUICK)
    assert alone.quality.value == pytest.approx(beside.quality.value, abs=1e-9)
    assert beside.gain is not None and beside.gain.value == pytest.approx(0, abs=1e-4)
    further = alignment_quality(made(x + 2 * torch.tensor(labels)[:, None], labels), **QUICK)
    assert alone.quality.value < further.quality.value < 100

"""The CAV is scikit-learn's probe at the penalty that grouped cross-validation chose."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from steerkit.extraction import METHODS, Training
from steerkit.extraction.penalty import GRID, choose_c, feature_size
from steerkit.statistics import grouped_folds


def rows(n: int = 60, d: int = 8, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    generator = torch.Generator().manual_seed(seed)
    x = 20 + 3 * torch.randn(2 * n, d, generator=generator, dtype=torch.float64)
    x[:n, 0] += 3
    return x, torch.tensor([1] * n + [0] * n), [f"p{i % n}" for i in range(2 * n)]


def test_it_is_scikit_learns_probe_at_the_chosen_penalty() -> None:
    x, labels, groups = rows()
    data = Training.of(x, groups)
    size = feature_size(data)
    assert size == pytest.approx(float(x.var(0, correction=0).mean().sqrt()))
    c = choose_c(data.coordinates / size, labels, groups, seed=0)
    probe = LogisticRegression(C=c, solver="newton-cholesky", tol=1e-12, max_iter=500)
    probe.fit(((x - x.mean(0)) / size).numpy(), labels.numpy())
    w = METHODS["logistic"](x, labels, groups, seed=0).numpy() * size
    assert np.linalg.norm(w - probe.coef_[0]) < 1e-6 * np.linalg.norm(probe.coef_[0])


def test_the_penalty_has_the_lowest_held_out_loss() -> None:
    x, labels, groups = rows(30)
    z = (x - x.mean(0)) / 3
    losses = []
    for c in GRID:
        total = 0.0
        for train, test in grouped_folds(labels.numpy(), groups, seed=0):
            probe = LogisticRegression(C=c, tol=1e-8, max_iter=5000)
            probe.fit(z[train].numpy(), labels[train].numpy())
            p = probe.predict_proba(z[test].numpy())
            total += log_loss(labels[test].numpy(), p, normalize=False)
        losses.append(total)
    axes = Training.of(z, groups).coordinates
    assert choose_c(axes, labels, groups, seed=0) == GRID[int(np.argmin(losses))]


def test_noise_is_penalised_more_than_signal() -> None:
    x, labels, groups = rows(seed=1)
    noise = torch.randn(120, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    data, nothing = Training.of(x, groups), Training.of(noise, groups)
    signal = choose_c(data.coordinates / feature_size(data), labels, groups, seed=0)
    assert choose_c(nothing.coordinates, labels, groups, seed=0) < signal


def test_scaling_the_stream_changes_neither_the_penalty_nor_the_direction() -> None:
    x, labels, groups = rows()
    w = METHODS["logistic"](x, labels, groups, seed=0)
    scaled = METHODS["logistic"](1000 * x, labels, groups, seed=0)
    assert torch.allclose(w, 1000 * scaled, rtol=1e-6)

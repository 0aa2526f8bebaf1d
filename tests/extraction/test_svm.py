"""The linear machine reaches scikit-learn's optimum, and only rows inside the margin pull."""

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC

from steerkit.extraction import METHODS, Training, column_probes
from steerkit.extraction.column_probes import SQUARED_HINGE
from steerkit.extraction.penalty import GRID, choose_c, feature_size
from steerkit.statistics import grouped_folds


def rows(n: int = 60, d: int = 8, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    generator = torch.Generator().manual_seed(seed)
    x = 20 + 3 * torch.randn(2 * n, d, generator=generator, dtype=torch.float64)
    x[:n, 0] += 3
    x = x[: 2 * n - 15]
    labels = torch.tensor([1] * n + [0] * (n - 15))
    return x, labels, [f"p{i % n}" for i in range(len(x))]


def their_machine(c: float) -> LinearSVC:
    # scikit-learn penalises the intercept b as (b / scaling)^2 / 2: hardly at all.
    return LinearSVC(C=c, dual=False, intercept_scaling=1e4, tol=1e-12, max_iter=100_000)


def objective(z, labels, c, w, b) -> float:  # type: ignore[no-untyped-def]
    margins = (2 * labels - 1) * (z @ w + b)
    return float(w @ w / 2 + c * ((1 - margins).clamp(min=0) ** 2).sum())


@pytest.mark.parametrize("c", [1e-3, 0.1, 10.0])
def test_the_optimum_is_scikit_learns_and_no_worse(c: float) -> None:
    x, labels, groups = rows()
    data = Training.of(x, groups)
    z = data.coordinates / feature_size(data)
    w, b = column_probes.fit(
        z,
        labels[:, None],
        torch.tensor([c]).double(),
        loss=SQUARED_HINGE,
        tolerance=1e-12,
        max_steps=2000,
    )
    theirs = their_machine(c).fit(z.numpy(), labels.numpy())
    coefficients = torch.from_numpy(theirs.coef_[0])
    assert float((w[:, 0] - coefficients).norm() / coefficients.norm()) < 1e-6
    best = objective(z, labels, c, coefficients, float(theirs.intercept_[0]))
    assert objective(z, labels, c, w[:, 0], b[0]) <= best * (1 + 1e-12)


def test_the_method_is_that_machine_at_the_chosen_penalty() -> None:
    x, labels, groups = rows()
    data = Training.of(x, groups)
    size = feature_size(data)
    c = choose_c(data.coordinates / size, labels, groups, loss=SQUARED_HINGE, seed=0)
    theirs = their_machine(c).fit(((x - x.mean(0)) / size).numpy(), labels.numpy()).coef_[0]
    w = METHODS["svm"](x, labels, groups, seed=0).numpy() * size
    assert np.linalg.norm(w - theirs) < 1e-6 * np.linalg.norm(theirs)


def test_the_penalty_has_the_lowest_held_out_hinge_loss() -> None:
    x, labels, groups = rows(40)
    z = (x - x.mean(0)) / 3
    losses = []
    for c in GRID:
        total = 0.0
        for train, test in grouped_folds(labels.numpy(), groups, seed=0):
            machine = their_machine(c).fit(z[train].numpy(), labels[train].numpy())
            margins = machine.decision_function(z[test].numpy()) * (2 * labels[test].numpy() - 1)
            total += float((np.maximum(0, 1 - margins) ** 2).sum())
        losses.append(total)
    axes = Training.of(z, groups).coordinates
    assert choose_c(axes, labels, groups, loss=SQUARED_HINGE, seed=0) == GRID[np.argmin(losses)]


def test_its_estimand_is_the_margin_not_the_means() -> None:
    """Rows far on the right side move the mean difference and leave the margin where it was."""
    generator = torch.Generator().manual_seed(1)
    x = 0.3 * torch.randn(400, 2, generator=generator, dtype=torch.float64)
    labels = torch.tensor([1] * 200 + [0] * 200)
    x[:200, 0] += 2
    x[200:, 0] -= 2
    x[:100, 1] += 40.0
    x[200:300, 1] += 1.0
    axis = torch.tensor([1.0, 0.0], dtype=torch.float64)
    w = METHODS["svm"](x, labels, [f"p{i}" for i in range(400)], seed=0)
    mean = METHODS["mean_difference"](x, labels, [""] * 400, seed=0)
    assert float(torch.cosine_similarity(w, axis, dim=0)) > 0.99
    assert float(torch.cosine_similarity(mean, axis, dim=0)) < 0.3

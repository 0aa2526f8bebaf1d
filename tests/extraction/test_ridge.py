"""Ridge equals scikit-learn's at its penalty, which leaving out whole groups chose."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from steerkit.extraction import METHODS, Training
from steerkit.extraction.penalty import feature_size
from steerkit.extraction.ridge import GRID, left_out_error


def rows(
    n: int = 40, d: int = 10, *, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Unbalanced, anisotropic, in groups of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * n, d, generator=generator, dtype=torch.float64)
    x = 5 + x * torch.logspace(0.5, -0.5, d, dtype=torch.float64)
    x[:n, 1] += 4.0
    x = x[: 2 * n - 9]
    labels = torch.tensor([1] * n + [0] * (n - 9))
    return x, labels, [f"g{i % (n - 3)}" for i in range(len(x))]


def left_out(x: torch.Tensor, target: torch.Tensor, groups: list[str], penalty: float) -> float:
    """The slow way: refit without each group."""
    total, z = 0.0, x.numpy()
    for group in sorted(set(groups)):
        out = np.asarray(groups) == group
        fitted = Ridge(alpha=penalty, solver="cholesky").fit(z[~out], target[~out].numpy())
        total += float(((fitted.predict(z[out]) - target[out].numpy()) ** 2).sum())
    return total


@pytest.mark.parametrize("d", [10, 120])
def test_leaving_out_a_group_is_exact(d: int) -> None:
    x, labels, groups = rows(d=d)
    data = Training.of(x, groups)
    target = 2.0 * labels.double() - 1
    target = target - target.mean()
    found = left_out_error(data, target[:, None])[:, 0]
    z = x / feature_size(data)
    for penalty, error in zip(GRID, found.tolist(), strict=True):
        assert error == pytest.approx(left_out(z, target, groups, penalty), rel=1e-7)


@pytest.mark.parametrize("d", [10, 120])
def test_it_is_scikit_learns_ridge_at_the_chosen_penalty(d: int) -> None:
    x, labels, groups = rows(d=d)
    data = Training.of(x, groups)
    target = (2.0 * labels.double() - 1)[:, None]
    size = feature_size(data)
    chosen = GRID[int(left_out_error(data, target - target.mean()).argmin())]
    assert GRID[0] < chosen < GRID[-1], "not at an end of the grid"
    theirs = Ridge(alpha=chosen, solver="cholesky").fit((x / size).numpy(), target[:, 0].numpy())
    w = METHODS["ridge"](x, labels, groups, seed=0).numpy() * size
    assert np.linalg.norm(w - theirs.coef_) < 1e-9 * np.linalg.norm(theirs.coef_)


def test_it_recovers_its_estimand_where_the_mean_difference_does_not() -> None:
    """With many rows the penalty is nothing and the weights are cov^-1 cov(x, label)."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(10, 10, generator=generator, dtype=torch.float64)
    x = torch.randn(40_000, 10, generator=generator, dtype=torch.float64) @ a.T
    delta = torch.randn(10, generator=generator, dtype=torch.float64)
    x[:20_000] += delta
    labels = torch.tensor([1] * 20_000 + [0] * 20_000)
    truth = torch.linalg.solve(a @ a.T + torch.outer(delta, delta) / 4, delta)
    groups = [f"p{i}" for i in range(40_000)]
    w = METHODS["ridge"](x, labels, groups, seed=0)
    mean = METHODS["mean_difference"](x, labels, groups, seed=0)
    assert float(torch.cosine_similarity(w, truth, dim=0)) > 0.99
    assert float(torch.cosine_similarity(mean, truth, dim=0)) < 0.5


def test_noise_is_penalised_more_than_signal() -> None:
    x, labels, groups = rows()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    target = (2.0 * labels.double() - 1)[:, None]
    target = target - target.mean()
    signal = left_out_error(Training.of(x, groups), target).argmin()
    assert left_out_error(Training.of(noise, groups), target).argmin() > signal


def test_one_group_alone_is_left_out_row_by_row() -> None:
    x, labels, _ = rows()
    alone = METHODS["ridge"](x, labels, ["all"] * len(x), seed=0)
    assert torch.allclose(
        alone, METHODS["ridge"](x, labels, [f"{i}" for i in range(len(x))], seed=0)
    )

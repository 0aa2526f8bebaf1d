"""Whitening: scikit-learn's shrunk covariance, and the square root between two known methods."""

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf

from steerkit.extraction import METHODS, Training
from steerkit.extraction.covariance import Shrunk


def anisotropic(n: int, d: int = 10) -> tuple[torch.Tensor, torch.Tensor, ...]:
    """Rows of covariance A A', positives moved by delta; also both of these."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(d, d, generator=generator, dtype=torch.float64)
    x = 7 + torch.randn(2 * n, d, generator=generator, dtype=torch.float64) @ a.T
    delta = 2 * torch.randn(d, generator=generator, dtype=torch.float64)
    x[:n] += delta
    return x, torch.tensor([1] * n + [0] * n), a @ a.T, delta


def power(matrix: torch.Tensor, exponent: float) -> torch.Tensor:
    """Of a symmetric matrix, by its eigenvectors."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values**exponent) @ vectors.T


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.cosine_similarity(a, b, dim=0))


@pytest.mark.parametrize("n, d", [(40, 10), (15, 60)])
@pytest.mark.parametrize("name, exponent", [("whitened_mean_difference", -0.5), ("leace", -1)])
def test_the_covariance_is_scikit_learns(n: int, d: int, name: str, exponent: float) -> None:
    x, labels, _, _ = anisotropic(n, d)
    covariance, shrinkage = ledoit_wolf(x.numpy())
    shrunk = Shrunk.of(Training.of(x, [""] * len(x)))
    assert shrunk.shrinkage == pytest.approx(shrinkage, rel=1e-9)
    trace = float(shrunk.inside.sum()) + (d - len(shrunk.inside)) * shrunk.outside
    assert trace == pytest.approx(np.trace(covariance), rel=1e-9)
    expected = power(torch.from_numpy(covariance), exponent) @ (x[:n].mean(0) - x[n:].mean(0))
    w = METHODS[name](x, labels, [""] * len(x), seed=0)
    assert torch.allclose(w, expected, rtol=1e-7, atol=1e-9)


def test_each_recovers_its_own_estimand_and_not_the_others() -> None:
    x, labels, within, delta = anisotropic(20_000)
    total = within + torch.outer(delta, delta) / 4
    truths = {
        "mean_difference": delta,
        "whitened_mean_difference": power(total, -0.5) @ delta,
        "leace": torch.linalg.solve(total, delta),
    }
    for name in truths:
        w = METHODS[name](x, labels, [""] * len(x), seed=0)
        for other, truth in truths.items():
            assert (cosine(w, truth) > 0.99) == (name == other), (name, other)


def test_an_axis_of_massive_spread_does_not_decide() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 8, generator=generator, dtype=torch.float64)
    x[:200, 0] += 2
    x[:, 7] *= 3000
    labels = torch.tensor([1] * 200 + [0] * 200)
    whitened = METHODS["whitened_mean_difference"](x, labels, [""] * 400, seed=0)
    plain = METHODS["mean_difference"](x, labels, [""] * 400, seed=0)
    assert abs(cosine(plain, torch.eye(8, dtype=torch.float64)[7])) > 0.99
    assert cosine(whitened, torch.eye(8, dtype=torch.float64)[0]) > 0.5

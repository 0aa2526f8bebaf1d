"""LDA estimates cov^-1 delta, with scikit-learn's shrinkage and scikit-learn's direction."""

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from steerkit.extraction import METHODS, Training
from steerkit.extraction.lda import _ledoit_wolf
from steerkit.extraction.training import class_means


def anisotropic(n: int, d: int = 10, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, ...]:
    """Rows of covariance A A', positives moved by delta; also both of these."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(d, d, generator=generator, dtype=torch.float64)
    x = torch.randn(2 * n, d, generator=generator, dtype=torch.float64) @ a.T
    delta = torch.randn(d, generator=generator, dtype=torch.float64)
    x[:n] += delta
    return x, torch.tensor([1] * n + [0] * n), a @ a.T, delta


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.cosine_similarity(a, b, dim=0))


def test_it_recovers_its_estimand_where_the_mean_difference_does_not() -> None:
    x, labels, cov, delta = anisotropic(20000)
    truth = torch.linalg.solve(cov, delta)
    lda = METHODS["lda"](x, labels, [""] * len(x), seed=0)
    mean = METHODS["mean_difference"](x, labels, [""] * len(x), seed=0)
    assert cosine(lda, truth) > 0.99
    assert cosine(mean, delta) > 0.99, "the mean difference recovers its own"
    assert cosine(mean, truth) < 0.5


@pytest.mark.parametrize("n, d", [(40, 10), (15, 60)])
def test_shrinkage_and_direction_equal_scikit_learn(n: int, d: int) -> None:
    x, labels, _, _ = anisotropic(n, d)
    x, labels = x[: 2 * n - 7], labels[: 2 * n - 7]
    rows, y = Training.of(x, [""] * len(x)), labels[:, None]
    means = torch.stack([x[labels == 0].mean(0), x[labels == 1].mean(0)])
    centred = (x - means[labels]).numpy()
    cov, shrinkage = ledoit_wolf(centred, assume_centered=True)
    ours, mean_variance = _ledoit_wolf(rows, y, *class_means(rows.coordinates, y))
    assert float(ours) == pytest.approx(shrinkage, rel=1e-9)
    assert float(mean_variance) == pytest.approx((centred**2).mean(), rel=1e-9)
    expected = np.linalg.solve(cov, (means[1] - means[0]).numpy())
    w = METHODS["lda"](x, labels, [""] * len(x), seed=0)
    assert cosine(w, torch.from_numpy(expected)) == pytest.approx(1.0, abs=1e-9)


def test_without_need_to_shrink_it_is_scikit_learns_discriminant() -> None:
    x, labels, _, _ = anisotropic(100000, 4)
    w = METHODS["lda"](x, labels, [""] * len(x), seed=0)
    probe = LinearDiscriminantAnalysis(solver="lsqr").fit(x.numpy(), labels.numpy())
    assert cosine(w, torch.from_numpy(probe.coef_[0])) > 0.99999


def test_more_axes_than_rows_are_no_problem() -> None:
    x, labels, _, _ = anisotropic(10, 200)
    w = METHODS["lda"](x, labels, [""] * len(x), seed=0)
    assert torch.isfinite(w).all() and float(w.norm()) > 0

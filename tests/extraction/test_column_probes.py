"""Every column reaches scikit-learn's optimum, and none a worse objective."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from steerkit.extraction import column_probes


def problem(n: int = 80, d: int = 12, *, gap: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    x *= torch.logspace(1, -1, d, dtype=torch.float64)
    labels = torch.tensor([1] * (n // 4) + [0] * (n - n // 4))
    x[labels == 1, 3] += gap
    x = x - x.mean(0)
    return x @ torch.linalg.svd(x, full_matrices=False)[2].T, labels


def objective(z, labels, c, w, b, weights=None) -> float:  # type: ignore[no-untyped-def]
    margins = (2 * labels - 1) * (z @ w + b)
    losses = torch.nn.functional.softplus(-margins)
    return float(w @ w / 2 + c * (losses * (1 if weights is None else weights)).sum())


@pytest.mark.parametrize("gap", [1.0, 40.0])
def test_every_column_equals_scikit_learn(gap: float) -> None:
    z, labels = problem(gap=gap)
    grid = torch.tensor([1e-4, 1e-2, 1.0, 100.0], dtype=torch.float64)
    w, b = column_probes.fit(z, labels[:, None].repeat(1, 4), grid, tolerance=1e-12)
    for k, c in enumerate(grid.tolist()):
        probe = LogisticRegression(C=c, solver="newton-cholesky", tol=1e-10)
        probe.fit(z.numpy(), labels.numpy())
        theirs = torch.from_numpy(probe.coef_[0])
        assert torch.allclose(w[:, k], theirs, atol=1e-4 * float(theirs.abs().max()))
        ours = objective(z, labels, c, w[:, k], b[k])
        assert ours <= objective(z, labels, c, theirs, float(probe.intercept_[0])) * (1 + 1e-9)


def test_rows_of_weight_zero_do_not_count() -> None:
    z, labels = problem()
    weights = torch.ones(len(z), 2, dtype=torch.float64)
    weights[::3, 1] = 0
    keep = weights[:, 1] > 0
    c = torch.ones(2, dtype=torch.float64)
    w, b = column_probes.fit(z, labels[:, None].repeat(1, 2), c, weights=weights, tolerance=1e-10)
    probe = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000)
    probe.fit(z[keep].numpy(), labels[keep].numpy())
    assert np.allclose(w[:, 1], probe.coef_[0], atol=1e-6)
    assert float(b[1]) == pytest.approx(probe.intercept_[0], abs=1e-6)
    assert not torch.allclose(w[:, 0], w[:, 1])


def test_each_column_is_as_if_it_stood_alone() -> None:
    z, labels = problem()
    columns = torch.stack([labels, labels.flip(0), labels.roll(7)], 1)
    c = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    together, _ = column_probes.fit(z, columns, c, tolerance=1e-9)
    for k in range(3):
        alone, _ = column_probes.fit(z, columns[:, k : k + 1], c[k : k + 1], tolerance=1e-9)
        assert torch.allclose(together[:, k], alone[:, 0], atol=1e-6)


@pytest.mark.parametrize("d", [12, 200])
@pytest.mark.parametrize("dtype, slack", [(torch.float64, 1e-9), (torch.float32, 1e-6)])
def test_rows_as_they_come_reach_no_worse_an_objective(
    d: int, dtype: torch.dtype, slack: float
) -> None:
    """Uncentred rows, unbalanced labels, and a fold left out; judged in float64."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(80, d, generator=generator, dtype=torch.float64)
    x = x * torch.logspace(0.5, -0.5, d, dtype=torch.float64) + 4
    labels = (x[:, :2] @ torch.tensor([[1.0, 0.3], [0.0, 1.0]]).double() > 6).long()
    weights = torch.ones(80, 2, dtype=torch.float64)
    weights[::4, 1] = 0
    c = torch.tensor([0.01, 0.3], dtype=torch.float64)
    w, b = column_probes.fit_rows(x.to(dtype), labels, c, weights=weights, tolerance=1e-6)
    assert w.dtype == dtype
    for k in range(2):
        keep = weights[:, k] > 0
        probe = LogisticRegression(C=float(c[k]), solver="newton-cholesky", tol=1e-12)
        probe.fit(x[keep].numpy(), labels[keep, k].numpy())
        theirs = torch.from_numpy(probe.coef_[0])
        rows, y = x[keep], labels[keep, k]
        best = objective(rows, y, float(c[k]), theirs, float(probe.intercept_[0]))
        ours = objective(rows, y, float(c[k]), w[:, k].double(), float(b[k]))
        assert ours <= best * (1 + slack)

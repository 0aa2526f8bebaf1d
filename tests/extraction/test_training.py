"""Principal axes of the training rows."""

import pytest
import torch

from steerkit.extraction.training import Training, class_means, gap, principal


@pytest.mark.parametrize("n, d", [(40, 6), (10, 30)])
def test_axes_rebuild_the_centred_rows(n: int, d: int) -> None:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0)) + 50
    rows = Training.of(x, ["g"] * n)
    assert rows.axes.shape == (min(n - 1, d), d) and len(rows) == n and rows.d_model == d
    assert torch.allclose(rows.coordinates @ rows.axes + rows.mean, x.double(), atol=1e-9)
    eye = torch.eye(len(rows.axes), dtype=torch.float64)
    assert torch.allclose(rows.axes @ rows.axes.T, eye, atol=1e-12)
    assert torch.allclose(rows.coordinates.T @ rows.coordinates, rows.spread.diag(), atol=1e-8)


@pytest.mark.parametrize("n, d", [(40, 9), (9, 40)])
@pytest.mark.parametrize("smallest", [1e-2, 1e-7])
def test_axes_keep_their_digits_also_where_a_gram_matrix_would_lose_them(
    n: int, d: int, smallest: float
) -> None:
    """Squares of 1e-7 are rounding beside 1, so there the rows are decomposed directly."""
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(n, 9, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(d, 9, generator=generator, dtype=torch.float64)).Q
    size = torch.logspace(0, float(torch.tensor(smallest).log10()), 9, dtype=torch.float64)
    u, s, vh = principal(left * size @ right.T)
    assert torch.allclose(s, size, rtol=1e-7)
    assert torch.allclose((vh @ right).abs(), torch.eye(9, dtype=torch.float64), atol=1e-7)
    assert torch.allclose((u.T @ left).abs(), torch.eye(9, dtype=torch.float64), atol=1e-7)


def test_means_of_many_labellings_at_once() -> None:
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([[1, 0], [0, 1], [1, 1]] * 4)
    positive, negative = class_means(x, labels)
    for k in range(2):
        y = labels[:, k] == 1
        assert torch.allclose(positive[:, k], x[y].mean(0))
        assert torch.allclose(negative[:, k], x[~y].mean(0))
    assert torch.allclose(gap(x, labels), positive - negative)

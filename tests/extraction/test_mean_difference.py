"""The mean difference is exact, also where float32 sums are not."""

import numpy as np
import torch

from steerkit.extraction import METHODS


def test_it_is_the_difference_of_the_class_means() -> None:
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([1, 0, 0] * 10)
    w = METHODS["mean_difference"](x, labels, [""] * 30, seed=0)
    expected = x.numpy()[labels == 1].mean(0) - x.numpy()[labels == 0].mean(0)
    assert np.allclose(w.numpy(), expected, atol=1e-14)


def test_sums_are_float64() -> None:
    """A massive constant feature would swallow the difference in float32."""
    noise = torch.randn(20000, 2, generator=torch.Generator().manual_seed(0))
    x = 3000 + 0.1 * noise
    labels = torch.tensor([1, 0] * 10000)
    rows = x.numpy().astype(np.float64)
    exact = rows[::2].mean(0) - rows[1::2].mean(0)
    w = METHODS["mean_difference"](x, labels, [""] * 20000, seed=0).numpy()
    assert np.abs(w - exact).max() < 1e-9
    sums = [np.add.accumulate(x.numpy()[side::2])[-1] / 10000 for side in (0, 1)]
    assert np.abs(sums[0] - sums[1] - exact).max() > 1e-4, "running sums in float32 do fail"

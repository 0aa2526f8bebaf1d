"""The theory's own curves, on a linear head whose margin and step are known."""

import numpy as np
import pytest
import torch

from steerkit.errors import MethodError
from steerkit.searches.tradeoffs.levels import fit_level


def linear_head(margin: float, size: float, start: float, x: np.ndarray) -> np.ndarray:
    """P(aligned) - P(misaligned) of a two-answer head as its input moves along one direction.

    The head reads the direction with +margin for the aligned answer and -margin for the
    other; strength x moves the input by `size * x` along it.
    """
    generator = torch.Generator().manual_seed(3)
    unit = torch.nn.functional.normalize(
        torch.randn(8, generator=generator, dtype=torch.float64), dim=0
    )
    head = torch.stack([margin * unit, -margin * unit])
    h0 = unit * float(np.arctanh(start)) / margin
    h = h0 + size * torch.from_numpy(x)[:, None] * unit
    p = (h @ head.T).softmax(-1)
    return (p[:, 0] - p[:, 1]).numpy()


@pytest.mark.parametrize(("margin", "size", "start"), [(1.0, 0.7, -0.6), (2.5, 0.3, 0.2)])
def test_a_linear_head_is_tanh_of_margin_times_size(
    margin: float, size: float, start: float
) -> None:
    x = np.linspace(-3.2, 4, 19)
    level = linear_head(margin, size, start, x)
    assert level == pytest.approx(np.tanh(margin * size * x + np.arctanh(start)), abs=1e-12)
    found = fit_level(x, level[:, None] * np.ones(4), list("abcd"), "tanh")
    assert found.parameters["a"].value == pytest.approx(margin * size, rel=1e-6)
    assert found.parameters["b"].value == pytest.approx(np.arctanh(start), rel=1e-6)
    assert found.residual < 1e-7 and found.r2 == pytest.approx(1)


def test_a_start_at_1_is_clipped_and_still_fitted() -> None:
    x = np.linspace(-6, 0, 13)
    found = fit_level(x, np.tanh(1.3 * x + 7)[:, None] * np.ones(3), list("abc"), "tanh")
    assert found.parameters["a"].value == pytest.approx(1.3, rel=1e-3)


def test_the_probability_of_a_right_answer() -> None:
    x = np.linspace(-5, 5, 21)
    p0, c = 0.8, 0.35
    level = p0 / (p0 + (1 - p0) * (1 + c * x**2))
    rng = np.random.default_rng(0)
    noisy = np.clip(level[:, None] + 0.02 * rng.standard_normal((21, 40)), 0, 1)
    found = fit_level(x, noisy, [f"g{i // 2}" for i in range(40)], "hill")
    for name, truth in (("P0", p0), ("c", c)):
        estimate = found.parameters[name]
        assert estimate.low <= truth <= estimate.high
        assert estimate.value == pytest.approx(truth, rel=0.05)
    assert found.r2 > 0.99


def test_levels_outside_their_range_are_refused() -> None:
    x = np.linspace(-1, 1, 5)
    with pytest.raises(MethodError, match="from 0 to 1"):
        fit_level(x, np.full((5, 4), -0.5), list("abcd"), "hill")
    with pytest.raises(MethodError, match="at least three strengths"):
        fit_level(x[:2], np.zeros((2, 4)), list("abcd"), "tanh")

"""Planted exponents are recovered, with intervals that cover, and the right form is chosen."""

import numpy as np
import pytest

from steerkit.errors import MethodError
from steerkit.searches.tradeoffs.fits import CurveFits, fit_curve

BOTH = np.array([-2.0, -1.5, -1.0, -0.6, -0.3, 0.0, 0.3, 0.6, 1.0, 1.5, 2.0])


def planted(
    k: float, seed: int, *, x: np.ndarray = BOTH, items: int = 60, noise: float = 0.4
) -> tuple[np.ndarray, list[str]]:
    """Items of their own size, in groups of three; noise shared by strengths of one item."""
    rng = np.random.default_rng(seed)
    size = 1 + 0.3 * rng.standard_normal(items // 3).repeat(3)
    own = noise * rng.standard_normal((len(x), items)) * np.minimum(1, abs(x))[:, None]
    return size * np.abs(x)[:, None] ** k + own, [f"g{i // 3}" for i in range(items)]


def fits(k: float, seed: int, **settings: float) -> CurveFits:
    y, groups = planted(k, seed)
    return fit_curve(BOTH, y, groups, parity="even", n_resamples=200, seed=seed, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [1.0, 1.5, 2.0])
def test_the_exponents_interval_covers_the_planted_one(k: float) -> None:
    found = [fits(k, seed).exponent for seed in range(200)]
    covered = np.mean([e.low <= k <= e.high for e in found])
    # 200 draws at 95%: the 99.9% binomial interval.
    assert 0.895 <= covered <= 0.99
    assert np.mean([e.value for e in found]) == pytest.approx(k, abs=0.03)


def test_exact_data_give_the_exponent_exactly() -> None:
    x = np.array([0.5, 1.0, 2.0, 3.0])
    y = 0.7 * x[:, None] ** 1.37 * np.array([1.0, 2.0, 0.5, 1.5])
    found = fit_curve(x, y, list("abcd"), parity="odd")
    assert found.exponent.value == pytest.approx(1.37, abs=1e-3)
    assert found.fit("power").parameters["c"].value == pytest.approx(0.7 * 1.25, rel=1e-3)
    assert [f.form for f in found.fits] == ["linear", "square", "quadratic", "power"]


def test_an_odd_curve_keeps_its_sign() -> None:
    y = np.sign(BOTH)[:, None] * np.abs(BOTH)[:, None] ** 1.2 * np.ones(6)
    y += 1e-3 * np.random.default_rng(0).standard_normal(y.shape)
    found = fit_curve(BOTH, y, list("abcdef"), parity="odd")
    assert found.exponent.value == pytest.approx(1.2, abs=0.02)
    assert found.fit("power").at(np.array([-1.0, 1.0]), "odd") == pytest.approx([-1, 1], abs=0.01)


def test_the_simplest_form_that_is_true_is_chosen() -> None:
    rng = np.random.default_rng(0)
    chosen = {"absolute": 0, "square": 0, "quadratic": 0, "linear": 0}
    n = 40
    for truth in chosen:
        for seed in range(n):
            noise = 0.3 * rng.standard_normal((len(BOTH), 60)) * np.minimum(1, abs(BOTH))[:, None]
            x = BOTH[:, None]
            clean = {
                "absolute": abs(x), "square": x**2, "quadratic": x + 0.5 * x**2, "linear": x,
            }[truth]  # fmt: skip
            found = fit_curve(
                BOTH, clean + noise, [f"g{i // 3}" for i in range(60)], parity="even",
                n_resamples=20, seed=seed,
            )  # fmt: skip
            chosen[truth] += found.chosen == truth
    assert all(right >= 0.8 * n for right in chosen.values()), chosen


def test_aicc_prefers_the_truth_and_charges_for_parameters() -> None:
    square, line = fits(2.0, 3), fits(1.0, 3)
    assert square.fit("square").aicc < square.fit("absolute").aicc
    assert line.fit("absolute").aicc < line.fit("square").aicc
    # On one exact line the second parameter buys nothing.
    x = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    y = x[:, None] * np.ones(6) + 0.2 * np.random.default_rng(1).standard_normal((6, 6))
    found = fit_curve(x, y - y.mean(1, keepdims=True) + x[:, None] + 0.01 * (-1) ** x[:, None],
                      list("abcdef"), parity="odd")  # fmt: skip
    assert found.fit("linear").aicc < found.fit("quadratic").aicc


def test_only_strengths_near_zero_are_fitted() -> None:
    """A curve that saturates is linear near zero, and is not far from it."""
    x = np.array([0.1, 0.2, 0.3, 0.4, 1.0, 2.0, 4.0])
    y = np.tanh(x)[:, None] * np.linspace(0.8, 1.2, 9)
    groups = [f"g{i}" for i in range(9)]
    near = fit_curve(x, y, groups, parity="odd", near=0.4)
    far = fit_curve(x, y, groups, parity="odd")
    assert near.near == 0.4 and far.near == 4.0
    assert near.exponent.value == pytest.approx(1, abs=0.05)
    assert far.exponent.value < 0.8
    assert len(near.change) == len(x), "all strengths are still shown"


def test_items_that_do_not_apply_drop_out() -> None:
    y, groups = planted(2.0, 0)
    holes = y.copy()
    holes[3, 7] = np.nan
    kept = [i for i in range(60) if i != 7]
    a = fit_curve(BOTH, holes, groups, parity="even")
    b = fit_curve(BOTH, y[:, kept], [groups[i] for i in kept], parity="even")
    assert a.exponent == b.exponent


def test_what_cannot_be_fitted_is_refused() -> None:
    y, groups = planted(2.0, 0)
    with pytest.raises(MethodError, match="at least 3 strengths"):
        fit_curve(BOTH, y, groups, parity="even", near=0.3)
    with pytest.raises(MethodError, match="shape"):
        fit_curve(BOTH[:3], y, groups, parity="even")
    with pytest.raises(MethodError, match="single group"):
        fit_curve(BOTH, y, ["g"] * 60, parity="even")
    with pytest.raises(MethodError, match="no item"):
        fit_curve(BOTH, np.full_like(y, np.nan), groups, parity="even")

"""Spearman with every permutation counted, against enumeration and scipy."""

from itertools import permutations

import numpy as np
import pytest

from steerkit.comparisons.ranks import rank_correlation
from steerkit.errors import MethodError


@pytest.mark.parametrize("tied", [False, True])
def test_p_is_that_of_all_permutations(tied: bool) -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    for n in (4, 5, 6):
        x, y = rng.normal(size=n), rng.normal(size=n)
        if tied:
            x, y = np.round(x), np.round(2 * y)
        found = rank_correlation(x, y)
        observed = spearmanr(x, y)[0]
        every = [spearmanr(x, y[list(order)])[0] for order in permutations(range(n))]
        p = np.mean(np.abs(every) >= abs(observed) - 1e-9)
        assert found.value.value == pytest.approx(observed)
        assert found.exact and found.p == pytest.approx(p)


def test_eleven_domains_are_counted_exactly_and_more_are_drawn() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 11))
    draws = [spearmanr(x, rng.permutation(y))[0] for _ in range(500)]
    found = rank_correlation(x, y)
    simulated = np.mean(np.abs(draws) >= abs(found.value.value) - 1e-9)
    assert found.exact and abs(found.p - simulated) < 0.08
    far = rank_correlation(np.arange(40.0), np.arange(40.0))
    assert not far.exact and far.p == pytest.approx(1 / 10_000)


def test_intervals_cover_and_perfect_order_keeps_room() -> None:
    rng = np.random.default_rng(2)
    rho = 0.5
    # Spearman's correlation of a bivariate normal.
    truth = 6 / np.pi * np.arcsin(rho / 2)
    covered = 0
    for _ in range(300):
        x = rng.normal(size=20)
        y = rho * x + np.sqrt(1 - rho**2) * rng.normal(size=20)
        value = rank_correlation(x, y, n_draws=1).value
        covered += value.low <= truth <= value.high
    # 99.9% binomial bounds of 95% over 300 draws are 91% and 99%.
    assert 0.905 <= covered / 300 <= 0.99
    whole = rank_correlation(range(6), range(6)).value
    assert whole.value == 1 and whole.low < 0.7 and whole.high == 1


def test_every_unit_is_left_out_once() -> None:
    found = rank_correlation([1, 2, 3, 4, 5], [1, 2, 3, 4, -9])
    assert found.leave_one_out[-1] == pytest.approx(1)
    assert len(found.leave_one_out) == 5 and found.value.value == pytest.approx(0)


def test_constants_and_bad_input() -> None:
    still = rank_correlation([1, 1, 1, 1], [1, 2, 3, 4])
    assert np.isnan(still.value.value) and still.p == 1
    for x, y in (([1, 2, 3], [1, 2, 3]), ([1, 2, 3, 4], [1, 2, 3]), ([1, 2, 3, np.nan],) * 2):
        with pytest.raises(MethodError, match="at least 4 units"):
            rank_correlation(x, y)

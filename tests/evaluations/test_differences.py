"""Intervals of differences of rates, paired and not."""

import numpy as np
import pytest

from steerkit.evaluations.differences import newcombe, paired_difference
from steerkit.statistics import wilson


def test_it_is_newcombes_method_ten():
    """Newcombe 1998, table II: 56/70 against 48/80."""
    found = newcombe(56 / 70 - 48 / 80, wilson(56, 70), wilson(48, 80))
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


@pytest.mark.parametrize(("up", "down"), [(0.3, 0.3), (0.4, 0.2), (0.05, 0.05), (0.5, 0.05)])
def test_intervals_of_paired_outcomes_hold_the_truth(up, down):
    """Many gains and many losses too: taken for independent, they covered 92 times in 100."""
    rng = np.random.default_rng(0)
    groups = [f"p{i}" for i in range(60)]
    drawn = rng.choice([1.0, -1.0, 0.0], (500, 60), p=[up, down, 1 - up - down])
    found = [paired_difference(values, groups) for values in drawn]
    covered = np.mean([e.low <= up - down <= e.high for e in found])
    assert 0.93 <= covered <= 0.985


def test_prompts_that_all_agree_leave_an_interval():
    groups = [f"p{i}" for i in range(20)]
    same = paired_difference(np.zeros(20), groups)
    assert same.value == 0 and same.low == -same.high < -0.1
    lost = paired_difference(-np.ones(20), groups)
    assert lost.low == -1 and -0.8 < lost.high < -0.7
    missing = paired_difference(np.array([1.0, np.nan, 1.0, 0.0]), ["a", "b", "c", "d"])
    assert missing.n == 3 and missing.value == pytest.approx(2 / 3)
    scores = paired_difference(np.array([0.5, 0.25, -0.5]), ["a", "b", "c"])
    assert scores.value == pytest.approx(1 / 12) and scores.low <= -0.5

"""Probabilities are what they say where a logistic model made the labels."""

import numpy as np
import pytest
from scipy.optimize import minimize

from steerkit.probing.calibration import platt, reliability, sigmoid


def known(n: int, slope: float = 1.5, offset: float = -0.4, seed: int = 0):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=n) * 2
    p = sigmoid(slope * scores + offset)
    return scores, (rng.random(n) < p).astype(np.int64), p


def test_platt_recovers_a_known_logistic_model():
    scores, labels, _ = known(50000)
    slope, offset = platt(scores, labels)
    assert slope == pytest.approx(1.5, abs=0.05) and offset == pytest.approx(-0.4, abs=0.05)


def test_platt_is_the_optimum_of_its_smoothed_likelihood():
    scores, labels, _ = known(60, seed=1)
    n_pos, n_neg = labels.sum(), (1 - labels).sum()
    target = np.where(labels == 1, (n_pos + 1) / (n_pos + 2), 1 / (n_neg + 2))

    def loss(at):
        logit = at[0] * scores + at[1]
        return (np.logaddexp(0, logit) - target * logit).sum()

    expected = minimize(loss, [0.0, 0.0], tol=1e-12).x
    np.testing.assert_allclose(platt(scores, labels), expected, atol=1e-5)


def test_scores_that_separate_give_a_finite_slope():
    slope, _ = platt(np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0, 0, 1, 1]))
    assert 0 < slope < 10


def test_scores_below_chance_are_not_turned_round():
    slope, offset = platt(np.array([1.0, 2.0, -1.0, -2.0]), np.array([0, 0, 1, 1]))
    assert slope == 0 and offset == pytest.approx(0)


def groups(n: int) -> list[str]:
    return [f"prompt{i}" for i in range(n)]


def test_true_probabilities_pass_and_overconfident_ones_do_not():
    scores, labels, p = known(2000)
    base = np.full(2000, labels.mean())
    good = reliability(p, labels, groups(2000), base)
    assert good.error_null.p > 0.05
    assert good.brier.value == pytest.approx(float((p * (1 - p)).mean()), abs=0.01)
    assert good.brier.high < good.brier_constant.low
    bad = reliability(sigmoid(6 * scores), labels, groups(2000), base)
    assert bad.error_null.p < 0.01 and bad.error > 2 * good.error
    assert sum(b.n for b in good.bins) == 2000 and len(good.bins) == 10
    assert all(b.rate.low - 0.03 <= b.said <= b.rate.high + 0.03 for b in good.bins)


def test_the_expected_error_is_the_mean_gap_over_bins():
    p = np.repeat([0.2, 0.9], 20)
    labels = np.array([1] * 10 + [0] * 10 + [1] * 20)
    found = reliability(p, labels, groups(40), np.full(40, 0.5), n_bins=2)
    assert found.error == pytest.approx((abs(0.2 - 0.5) + abs(0.9 - 1.0)) / 2)
    assert [b.rate.value for b in found.bins] == [0.5, 1.0]


def test_false_alarms_of_the_calibration_test_are_no_more_than_said():
    """500 draws from calibrated probabilities, p <= 0.05."""
    from scipy.stats import binom

    refuted = 0
    for seed in range(500):
        _, labels, p = known(60, seed=seed)
        refuted += reliability(p, labels, groups(60), p, n_bins=5, seed=seed).error_null.p <= 0.05
    low, high = binom.interval(0.999, 500, 0.05)
    assert low <= refuted <= high

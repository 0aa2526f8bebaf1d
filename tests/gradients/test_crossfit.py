"""The held-out effect of mean gradients: what it is, its interval, its false alarms, its power."""

import numpy as np
import pytest
from scipy.stats import binom

from steerkit.gradients.crossfit import CrossFit, folds_of


def fit(slopes, groups=None, seed=0, n_folds=5):
    names = [f"g{i}" for i in range(len(slopes))] if groups is None else groups
    return CrossFit(np.asarray(slopes, float), names, folds_of(names, n_folds, seed=seed), seed)


def noise(rng, n=40, d=16, size=2):
    """Gradients of groups that share what they have: symmetric around zero."""
    return np.repeat(rng.standard_normal((n // size, d)), size, 0) + 0.3 * rng.standard_normal(
        (n, d)
    ), [f"g{i // size}" for i in range(n)]


def test_folds_hold_whole_groups_and_every_row_once():
    groups = [f"g{i % 7}" for i in range(30)]
    folds = folds_of(groups, 5, seed=3)
    assert sorted(np.concatenate([test for _, test in folds]).tolist()) == list(range(30))
    for train, test in folds:
        assert not {groups[i] for i in train} & {groups[i] for i in test}
        assert sorted([*train, *test]) == list(range(30))
    assert len(folds_of(["a", "b", "a"], 5)) == 2


def test_the_effect_is_the_plain_loop():
    slopes, groups = noise(np.random.default_rng(0))
    slopes[:, 0] += 1
    found = fit(slopes, groups)
    each = np.zeros(len(slopes))
    for train, test in found.folds:
        mean = slopes[train].mean(0)
        each[test] = slopes[test] @ mean / np.linalg.norm(mean)
    assert found.effect == pytest.approx(each.mean(), abs=1e-12)
    # A resample is the same loop over the rows it draws.
    counts = np.random.default_rng(1).integers(0, 3, len(slopes)).astype(float)
    total = 0.0
    for train, test in found.folds:
        mean = (slopes[train] * counts[train, None]).sum(0)
        total += (counts[test] * (slopes[test] @ mean)).sum() / np.linalg.norm(mean)
    assert found.effects(counts[:, None])[0] == pytest.approx(total / counts.sum(), abs=1e-12)


def test_equal_gradients_have_their_own_norm_as_effect_and_agree_beyond_chance():
    slopes = np.tile([3.0, 4.0, 0.0], (30, 1))
    found = fit(slopes)
    estimate = found.estimate(2.0, "nats")
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((10, 10, 10))
    assert found.exchanged(2.0, 199).p == 1 / 200


def test_false_alarms_over_a_thousand_draws_without_agreement():
    rng = np.random.default_rng(5)
    alarms = 0
    for draw in range(1000):
        slopes, groups = noise(rng)
        alarms += fit(slopes, groups, seed=draw).exchanged(1.0, 99).p <= 0.05
    low, high = binom.interval(0.999, 1000, 0.05)
    assert low <= alarms <= high


def test_power_on_a_shift_of_six_tenths_of_a_deviation():
    rng = np.random.default_rng(6)
    found = 0
    for draw in range(200):
        slopes, groups = noise(rng, n=80)
        slopes[:, 3] += 0.6
        slopes[:, 7] -= 0.6
        found += fit(slopes, groups, seed=draw).exchanged(1.0, 99).p <= 0.05
    assert found >= 160


def test_the_interval_covers_the_effect_of_fresh_prompts():
    """What is covered: the effect that the fold's mean gradient has in the population."""
    rng = np.random.default_rng(7)
    shift = np.array([1.0, 0.5, 0, 0, 0, 0, 0, 0])
    covered, draws = 0, 300
    truths = []
    for _ in range(2000):
        mean = (shift + rng.standard_normal((40, 8))).mean(0)
        truths.append(shift @ mean / np.linalg.norm(mean))
    truth = np.mean(truths)
    for draw in range(draws):
        slopes = shift + rng.standard_normal((50, 8))
        low_high = fit(slopes, seed=draw).estimate(1.0, "", n_resamples=200)
        covered += low_high.low <= truth <= low_high.high
    assert 0.90 <= covered / draws <= 0.985


def test_random_vectors_have_equal_norm_and_shaped_ones_the_covariance():
    rng = np.random.default_rng(8)
    slopes = rng.standard_normal((50, 64)) * 0.1 + np.eye(64)[0]
    found = fit(slopes)
    isotropic = found.random(1.0, 4000)
    # |g . r| of a unit r in d dimensions has mean |g| sqrt(2 / (pi d)), to first order.
    assert isotropic.mean == pytest.approx(
        np.linalg.norm(slopes.mean(0)) * np.sqrt(2 / (np.pi * 64)), rel=0.05
    )
    states = rng.standard_normal((200, 64)) * np.r_[30.0, np.ones(63)]
    shaped = found.random(1.0, 999, states)
    assert shaped.mean > 5 * isotropic.mean
    assert shaped.p > isotropic.p

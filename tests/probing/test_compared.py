"""The paired difference of two AUCs on the same rows."""

import numpy as np
import pytest
from scipy.stats import binom

from steerkit.extraction.ranking import fold_auc
from steerkit.probing.candidates import recipes
from steerkit.probing.compared import Arm, auc_difference
from steerkit.probing.nested import crossed, run
from steerkit.probing.verbs import _folds, one_row_each
from steerkit.statistics import Estimate, row_draws

CHOSEN = recipes("ridge", [1.0, 100.0])


@pytest.fixture
def sample():
    rng = np.random.default_rng(0)
    labels = np.array([1, 0] * 60)
    groups = [f"pair{i // 2}" for i in range(120)]
    folds = (np.arange(120) // 2) % 5
    scores = rng.normal(size=(120, 2)) + np.outer(labels, [2.0, 0.5])
    return scores, labels, folds, groups


def test_it_is_the_difference_of_the_two_aucs(sample):
    scores, labels, folds, groups = sample
    draws = row_draws(groups)
    found = auc_difference(scores[:, 0], scores[:, 1], labels, (folds, folds), draws, groups)
    one, other = (fold_auc(scores[:, k], labels, folds, groups).value for k in range(2))
    assert found.value == pytest.approx(one - other) and found.low > 0
    back = auc_difference(scores[:, 1], scores[:, 0], labels, (folds, folds), draws, groups)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


def test_scores_against_themselves_differ_by_nothing(sample):
    scores, labels, folds, groups = sample
    found = auc_difference(
        scores[:, 0], scores[:, 0] * 3 + 1, labels, (folds, folds), row_draws(groups), groups
    )
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_pairing_makes_it_sharper_than_two_intervals(sample):
    scores, labels, folds, groups = sample
    near = scores[:, 0] + 0.1 * scores[:, 1]
    found = auc_difference(scores[:, 0], near, labels, (folds, folds), row_draws(groups), groups)
    alone = fold_auc(scores[:, 0], labels, folds, groups)
    assert found.high - found.low < (alone.high - alone.low) / 2


@pytest.mark.slow
def test_two_equally_good_probes_do_not_beat_each_other(plant):
    """200 draws: "beaten" is said of an equal control no more often than 5% allows."""
    beaten = 0
    for seed in range(200):
        scores = []
        for other in (0, 1):
            data = one_row_each(plant(40, size=1.0, sites=1, seed=seed + 1000 * other))
            fold_of = _folds(data, 4, 0)
            found = run(data, data.labels[:, None], crossed(fold_of), CHOSEN, exact=True)
            scores.append(found.held_out())
        draws = row_draws(data.groups, n_resamples=400, seed=seed)
        folds = (fold_of, fold_of)
        beaten += auc_difference(*scores, data.labels, folds, draws, data.groups).low > 0
    assert beaten <= binom.ppf(0.999, 200, 0.05)


@pytest.mark.parametrize(
    ("low", "high", "state"),
    [
        (0.01, 0.3, "beaten"),
        (0.0, 0.02, "matched"),
        (-0.3, -0.1, "matched"),
        (-0.1, 0.2, "undecided"),
    ],
)
def test_what_an_interval_of_the_difference_says(low, high, state):
    some = Estimate(0.9, 0.8, 1.0, 40)
    arm = Arm("words alone", some, some, Estimate((low + high) / 2, low, high, 40))
    assert arm.state(0.05) == state

"""Bulk AUCs equal scikit-learn's; their intervals cover the AUC of what was fitted."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from steerkit.activations import Activations
from steerkit.extraction import METHODS
from steerkit.extraction.labelled import Labelled
from steerkit.extraction.ranking import auc_columns, fold_auc, weighted_auc
from steerkit.extraction.scoring import Plan
from steerkit.statistics import row_draws, wilson


@pytest.mark.parametrize("levels", [5, 10**9])
def test_columns_equal_scikit_learn_with_and_without_ties(levels: int) -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, levels, (60, 12)).astype(float)
    labels = rng.integers(0, 2, (60, 12))
    values, compared = auc_columns(scores, labels)
    for k in range(12):
        assert values[k] == pytest.approx(roc_auc_score(labels[:, k], scores[:, k]))
        assert compared[k] == labels[:, k].sum() * (1 - labels[:, k]).sum()
    one, _ = auc_columns(scores, labels[:, 0])
    assert one[3] == pytest.approx(roc_auc_score(labels[:, 0], scores[:, 3]))


def test_a_column_of_one_class_has_no_auc() -> None:
    values, compared = auc_columns(np.arange(4.0), np.ones(4))
    assert np.isnan(values[0]) and compared[0] == 0


def test_a_weight_counts_a_row_that_often() -> None:
    rng = np.random.default_rng(1)
    scores, labels = rng.integers(0, 8, 50).astype(float), rng.integers(0, 2, 50)
    weights = rng.integers(0, 4, (50, 6)).astype(float)
    values, compared = weighted_auc(scores, labels, weights)
    for k in range(6):
        repeats = np.repeat(np.arange(50), weights[:, k].astype(int))
        assert values[k] == pytest.approx(roc_auc_score(labels[repeats], scores[repeats]))
        assert compared[k] == labels[repeats].sum() * (1 - labels[repeats]).sum()


def test_scores_of_different_folds_are_never_compared() -> None:
    scores = np.array([1.0, 0.0, 101.0, 100.0, 51.0, 50.0])
    labels = np.array([1, 0, 1, 0, 1, 0])
    folds = np.array([0, 0, 1, 1, 2, 2])
    groups = [f"g{i}" for i in range(6)]
    assert fold_auc(scores, labels, folds, groups).value == 1.0
    assert roc_auc_score(labels, scores) < 0.7, "pooling them would have hidden it"


def test_a_perfect_score_still_has_an_interval() -> None:
    labels = np.array([1] * 20 + [0] * 30)
    found = fold_auc(labels + 0.0, labels, np.arange(50) % 5, [f"g{i}" for i in range(50)])
    assert (found.value, found.high, found.n) == (1.0, 1.0, 50)
    assert found.low == wilson(20, 20).low


def test_intervals_cover_the_auc_of_fixed_scores_of_clustered_prompts() -> None:
    """Templates of four prompts of one label that share most of their score."""
    rng = np.random.default_rng(4)
    labels = np.repeat(np.arange(80) % 2, 4)
    groups = [f"t{i // 4}" for i in range(320)]
    lonely = [f"p{i}" for i in range(320)]
    folds = np.arange(80).repeat(4) // 2 % 5
    truth, hits, narrow = norm.cdf(1 / np.sqrt(2)), 0, 0
    by_group = row_draws(groups, n_resamples=400)
    by_prompt = row_draws(lonely, n_resamples=400)
    for _ in range(300):
        shared = rng.standard_normal(80).repeat(4) * np.sqrt(0.7)
        scores = labels + shared + rng.standard_normal(320) * np.sqrt(0.3)
        whole = fold_auc(scores, labels, folds, groups, draws=by_group)
        hits += whole.low <= truth <= whole.high
        split = fold_auc(scores, labels, folds, lonely, draws=by_prompt)
        narrow += split.low <= truth <= split.high
    assert 0.93 <= hits / 300 <= 0.97
    assert narrow / 300 < 0.8, "resampling prompts would be far too sure"


def test_intervals_cover_the_auc_of_the_direction_that_is_returned(
    plant: Callable[..., Activations],
) -> None:
    """The whole chain: draw prompts, fit, score by folds; truth is the full fit's own AUC."""
    method = {"mean_difference": METHODS["mean_difference"]}
    plan = Plan.make(Labelled.of(plant(60, 8, paired=False)), n_folds=5, n_permutations=0, seed=0)
    hits = 0
    for seed in range(300):
        data = Labelled.of(plant(60, 8, size=1.5, paired=False, seed=seed))
        x = data.rows(0)
        found = plan.score(x, method)["mean_difference"].auc
        unit = method["mean_difference"](x, torch.from_numpy(data.row_labels), (), seed=0)
        truth = norm.cdf(1.5 * float(unit[0] / unit.norm()) / np.sqrt(2))
        hits += found.low <= truth <= found.high
    assert 0.93 <= hits / 300 <= 0.97


def test_draws_may_be_shared() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.random(40), np.arange(40) % 2
    groups = [f"g{i // 2}" for i in range(40)]
    folds = np.arange(40) // 2 % 4
    shared = fold_auc(scores, labels, folds, groups, draws=row_draws(groups, seed=3))
    assert shared == fold_auc(scores, labels, folds, groups, seed=3)
    assert torch.tensor([shared.low, shared.value, shared.high]).diff().min() > 0

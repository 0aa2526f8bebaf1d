"""Intervals cover, nulls are uniform, groups stay whole."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest, kstest
from sklearn.metrics import roc_auc_score

from steerkit import statistics as st


def clustered(rng: np.random.Generator, n_groups: int, size: int, within: float) -> NDArray:
    """`[group member]` normal values of variance 1 whose group-mates correlate by `within`."""
    shared = rng.standard_normal((n_groups, 1)) * np.sqrt(within)
    return shared + rng.standard_normal((n_groups, size)) * np.sqrt(1 - within)


def names(n_groups: int, size: int) -> list[str]:
    return [f"g{i}" for i in range(n_groups) for _ in range(size)]


# Rates


@pytest.mark.parametrize("k, n", [(0, 20), (7, 50), (499, 500), (20, 20), (3, 1000)])
def test_wilson_equals_scipy(k: int, n: int) -> None:
    ours, theirs = st.wilson(k, n), binomtest(k, n).proportion_ci(method="wilson")
    assert (ours.value, ours.n) == (k / n, n)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_of_nothing_says_nothing() -> None:
    empty = st.wilson(0, 0)
    assert np.isnan(empty.value) and (empty.low, empty.high) == (0.0, 1.0)


@pytest.mark.parametrize("p, n_groups, size, within", [(0.5, 60, 1, 0.0), (0.03, 100, 5, 0.1)])
def test_intervals_of_a_rate_cover_it(p: float, n_groups: int, size: int, within: float) -> None:
    rng = np.random.default_rng(3)
    groups = names(n_groups, size)
    hits = 0
    for _ in range(600):
        own = np.full((n_groups, 1), p)
        if within:
            own = rng.beta(p * (1 / within - 1), (1 - p) * (1 / within - 1), (n_groups, 1))
        values = (rng.random((n_groups, size)) < own).astype(float).ravel()
        found = st.cluster_mean(values, groups)
        hits += found.low <= p <= found.high
    assert 0.93 <= hits / 600 <= 0.97


def test_a_rate_on_which_all_agree_still_has_an_interval() -> None:
    found = st.cluster_mean([0.0] * 40, names(20, 2), unit="fraction")
    assert (found.value, found.low, found.n, found.unit) == (0.0, 0.0, 20, "fraction")
    assert found.high == st.wilson(0, 20).high > 0.1


def test_values_that_do_not_apply_are_left_out() -> None:
    found = st.cluster_mean([1.5, np.nan, 2.5, np.nan], ["a", "b", "c", "d"])
    assert (found.value, found.n) == (2.0, 2)
    nothing = st.cluster_mean([np.nan], ["a"])
    assert np.isnan(nothing.value) and nothing.n == 0


# Bootstrap


def test_group_intervals_cover_and_prompt_intervals_do_not() -> None:
    """Known failure: resampling prompts of clustered data gives intervals far too narrow."""
    rng = np.random.default_rng(2)
    groups, lonely = names(60, 8), names(480, 1)
    by_group = by_prompt = 0
    for i in range(400):
        values = clustered(rng, 60, 8, 0.5).ravel()
        whole = st.cluster_mean(values, groups, n_resamples=400, seed=i)
        split = st.cluster_mean(values, lonely, n_resamples=400, seed=i)
        by_group += whole.low <= 0 <= whole.high
        by_prompt += split.low <= 0 <= split.high
    assert 0.93 <= by_group / 400 <= 0.97
    assert by_prompt / 400 < 0.75


def test_the_bootstrap_hands_over_whole_groups() -> None:
    groups = ["a", "b", "a", "c", "b", "a"]
    seen: list[NDArray] = []

    def statistic(rows: NDArray) -> float:
        seen.append(rows)
        return float(len(rows))

    found = st.group_bootstrap(statistic, groups, n_resamples=50, unit="rows")
    assert (found.value, found.n, found.unit) == (6.0, 3, "rows")
    sizes = {"a": 3, "b": 2, "c": 1}
    for rows in seen:
        drawn = [groups[i] for i in rows]
        assert all(drawn.count(g) % sizes[g] == 0 for g in sizes)
    assert found.low < 6 < found.high


def test_row_draws_repeat_the_members_of_a_group_together() -> None:
    groups = ["b", "a", "b", "c"]
    draws = st.row_draws(groups, n_resamples=200, seed=1)
    assert draws.shape == (4, 200)
    assert (draws[0] == draws[2]).all()
    assert (draws[[0, 1, 3]].sum(0) == 3).all(), "as many groups are drawn as there are"
    assert np.array_equal(draws, st.row_draws(groups, n_resamples=200, seed=1))
    assert draws[[0, 1, 3]].mean() == pytest.approx(1.0)


# Ranking and nulls


def test_auc_equals_sklearn_with_ties() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, labels = rng.integers(0, 6, 40), rng.integers(0, 2, 40)
        assert st.auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    assert np.isnan(st.auc([1.0, 2.0], [1, 1]))


def test_p_values_count_the_observed_value_itself() -> None:
    found = st.null("chance", 0.9, [0.1, 0.95, 0.9, float("nan")])
    assert (found.p, found.n, found.maximum) == (3 / 4, 3, 0.95)
    assert st.null("chance", 2.0, np.zeros(199)).p == 1 / 200
    assert st.null("chance", 1.0, []).n == 0


def test_p_values_of_null_data_are_uniform() -> None:
    rng = np.random.default_rng(0)
    p = [st.null("", rng.random(), rng.random(99)).p for _ in range(1000)]
    assert kstest(np.array(p) - 0.005, "uniform").pvalue > 0.01


def test_holm_equals_recorded_values_of_statsmodels() -> None:
    adjusted = st.holm([0.013, 0.2, 0.004, 0.03, 0.049, 0.001, 0.6])
    assert adjusted == pytest.approx([0.065, 0.4, 0.024, 0.12, 0.147, 0.007, 0.6])
    assert st.holm([0.9, 0.8]) == [1.0, 1.0]
    assert st.holm([]) == []


def test_holm_controls_the_family_wise_rate() -> None:
    rng = np.random.default_rng(1)
    alarms = sum(min(st.holm(list(rng.random(8)))) <= 0.05 for _ in range(2000))
    assert binomtest(alarms, 2000, 0.05).pvalue > 0.001


# Permutations


def test_labels_of_a_pair_are_exchanged_within_it() -> None:
    labels, groups = [1] * 50 + [0] * 50, [f"p{i % 50}" for i in range(100)]
    columns = st.permutations(labels, groups, 400, np.random.default_rng(0))
    assert (columns[:50] + columns[50:] == 1).all(), "each pair keeps one of each"
    assert abs(columns[:50].mean() - 0.5) < 0.02
    # Pairs flip independently.
    flips = columns[:50].T.astype(float)
    between = np.corrcoef(flips.T)[np.triu_indices(50, 1)]
    assert abs(between).mean() < 0.06


def test_groups_of_one_label_keep_one_label() -> None:
    labels = [1, 1, 1, 0, 0, 1, 0, 0]
    groups = ["a", "a", "a", "b", "b", "c", "d", "e"]
    columns = st.permutations(labels, groups, 300, np.random.default_rng(0))
    assert (columns[0] == columns[1]).all() and (columns[1] == columns[2]).all()
    assert (columns[3] == columns[4]).all()
    one_each = columns[[0, 3, 5, 6, 7]]
    assert (one_each.sum(0) == 2).all(), "as many positive groups as observed"
    assert one_each.mean(1) == pytest.approx(np.full(5, 0.4), abs=0.1)


def test_pairs_and_lone_prompts_are_exchanged_apart() -> None:
    labels = [1, 0, 1, 0, 1, 1, 0]
    groups = ["p", "p", "q", "q", "x", "y", "z"]
    columns = st.permutations(labels, groups, 100, np.random.default_rng(0))
    assert (columns[0] + columns[1] == 1).all() and (columns[2] + columns[3] == 1).all()
    assert (columns[4:].sum(0) == 2).all() and columns[4:].std(1).min() > 0


def test_exchange_within_folds_keeps_each_fold_balanced() -> None:
    labels = np.array([1, 0] * 20)
    within = np.repeat(np.arange(4), 10)
    columns = st.permutations(
        labels, [f"x{i}" for i in range(40)], 50, np.random.default_rng(0), within=within
    )
    assert all((columns[within == f].sum(0) == 5).all() for f in range(4))


def test_one_permutation_is_a_column_of_many() -> None:
    labels, groups = [1, 0, 1, 0], ["a", "a", "b", "b"]
    one = st.permute_labels(labels, groups, np.random.default_rng(5))
    assert one.shape == (4,) and one[0] + one[1] == 1


# Folds


def test_folds_never_split_a_group_and_cover_every_row_once() -> None:
    rng = np.random.default_rng(0)
    groups = [f"g{i}" for i in rng.integers(0, 30, 200)]
    labels = rng.integers(0, 2, 200)
    folds = st.grouped_folds(labels, groups, seed=2)
    assert len(folds) == 5
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(200))
    for train, test in folds:
        assert not {groups[i] for i in train} & {groups[i] for i in test}
        assert set(train) | set(test) == set(range(200))
        assert 0.1 < len(test) / 200 < 0.3
        assert set(labels[test]) == {0, 1}


@pytest.mark.parametrize("paired", [True, False])
def test_folds_of_pairs_and_of_prompts_are_balanced(paired: bool) -> None:
    labels = np.array([1] * 53 + [0] * 53)
    groups = [f"p{i % 53 if paired else i}" for i in range(106)]
    for _, test in st.grouped_folds(labels, groups):
        counts = np.bincount(labels[test])
        assert abs(counts[0] - counts[1]) <= 1 and 20 <= counts.sum() <= 22


def test_folds_do_not_depend_on_the_order_of_rows() -> None:
    labels = np.array([1, 0] * 30)
    groups = np.array([f"g{i // 3}" for i in range(60)])
    order = np.random.default_rng(0).permutation(60)
    plain = st.grouped_folds(labels, list(groups), seed=4)
    moved = st.grouped_folds(labels[order], list(groups[order]), seed=4)
    for (_, a), (_, b) in zip(plain, moved, strict=True):
        assert set(a) == set(order[b])
    other = st.grouped_folds(labels, list(groups), seed=5)
    assert any(set(a) != set(b) for (_, a), (_, b) in zip(plain, other, strict=True))


def test_few_groups_make_few_folds() -> None:
    folds = st.grouped_folds([1, 1, 1, 0, 0, 0], ["a", "b", "c", "d", "d", "e"])
    assert len(folds) == 2
    assert all(len(test) for _, test in folds)


def test_an_estimate_reads_as_value_and_interval() -> None:
    e = st.Estimate(0.81234, 0.7, 0.9, 10, "AUC")
    assert str(e) == "0.812 [0.7, 0.9]"
    assert st.Estimate(**e.to_json()) == e


def test_a_detectable_difference_is_found_four_times_in_five() -> None:
    from scipy.stats import norm

    wide = st.detectable(st.Estimate(3.0, 3.0 - 1.96 * 0.5, 3.0 + 1.96 * 0.5, 40))
    assert norm.sf(1.96 - wide / 0.5) == pytest.approx(0.8, abs=0.01)

"""Selection on inner folds only: against a slow loop, on null data, and on a planted site."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from steerkit.probing.candidates import recipes
from steerkit.probing.nested import crossed, run
from steerkit.probing.verbs import _folds, one_row_each
from steerkit.site import Site


def trials(acts, methods="ridge", *, penalties=None, n_folds=4, labels=None):
    data = one_row_each(acts)
    fold_of = _folds(data, n_folds, 0)
    y = data.labels[:, None] if labels is None else labels
    return run(data, y, crossed(fold_of), recipes(methods, penalties), exact=True), fold_of


def test_no_split_shares_a_group_and_every_fit_is_made_once(plant):
    acts = plant(30)
    data = one_row_each(acts)
    fold_of = _folds(data, 5, 0)
    outers = crossed(fold_of)
    groups = np.array(data.groups)
    fits = {outer.train.tobytes() for outer in outers}
    for outer in outers:
        assert not set(groups[outer.train]) & set(groups[outer.test])
        assert sorted([*outer.train, *outer.test]) == list(range(60))
        for train, test in outer.inner:
            assert not set(groups[train]) & set(groups[test])
            assert not set(groups[outer.test]) & set(groups[[*train, *test]])
            assert sorted([*train, *test]) == list(outer.train)
            fits.add(train.tobytes())
    assert len(fits) == 5 * 6 / 2


def test_it_is_what_a_loop_over_scikit_learn_gives(plant):
    acts = plant(24, size=0.9, sites=2, at=1)
    penalties = (0.01, 0.3)
    found, fold_of = trials(acts, "logistic", penalties=penalties)
    x, y = acts.values.double().numpy(), np.array(acts.labels)

    def scores(train, test, site, c):
        centred = x[:, site] - x[train, site].mean(0)
        size = np.sqrt((centred[train] ** 2).mean())
        fit = LogisticRegression(C=c, tol=1e-12, max_iter=20000)
        fit.fit(centred[train] / size, y[train])
        return centred[test] / size @ fit.coef_[0]

    grid = [(site, c) for site in range(2) for c in penalties]
    right, pairs = 0.0, 0
    for k in range(4):
        others = [j for j in range(4) if j != k]
        inner = []
        for site, c in grid:
            values = []
            for j in others:
                train = np.flatnonzero((fold_of != k) & (fold_of != j))
                test = np.flatnonzero(fold_of == j)
                weight = y[test].sum() * (1 - y[test]).sum()
                auc = roc_auc_score(y[test], scores(train, test, site, c))
                values.append((weight, auc))
            inner.append(sum(w * a for w, a in values) / sum(w for w, _ in values))
        best = int(np.argmax(np.round(inner, 12)))
        site, c = grid[best]
        choice = found.choices[k]
        assert (choice.candidate.site, choice.candidate.penalty) == (Site(site), c)
        assert choice.inner == pytest.approx(inner[best])
        train, test = np.flatnonzero(fold_of != k), np.flatnonzero(fold_of == k)
        held = scores(train, test, site, c)
        np.testing.assert_allclose(found.held_out()[test], held, rtol=1e-6, atol=1e-6)
        here = int(y[test].sum() * (1 - y[test]).sum())
        right, pairs = right + here * roc_auc_score(y[test], held), pairs + here
    assert found.auc[0] == pytest.approx(right / pairs)


def test_every_labelling_makes_its_own_choices(plant):
    """Column by column, the many labellings give what each alone gives."""
    acts = plant(20, size=1.0)
    rng = np.random.default_rng(0)
    y = np.array(acts.labels)
    flip = rng.random((20, 3)) < 0.5
    labels = np.hstack([y[:, None], np.where(np.vstack([flip, flip]), 1 - y[:, None], y[:, None])])
    together, _ = trials(acts, "ridge", labels=labels)
    for k in range(4):
        alone, _ = trials(acts, "ridge", labels=labels[:, [k]])
        assert (together.chosen[:, k] == alone.chosen[:, 0]).all()
        assert together.auc[k] == pytest.approx(alone.auc[0])


def test_the_nested_estimate_is_unbiased_where_the_naive_maximum_is_not(plant):
    """60 data sets with nothing in them: 3 sites x 6 penalties to choose from."""
    nested, naive = [], []
    for seed in range(60):
        found, _ = trials(plant(20, 6, sites=3, seed=seed))
        nested.append(found.auc[0])
        naive.append(found.naive[0])
    error = np.std(nested) / np.sqrt(len(nested))
    assert abs(np.mean(nested) - 0.5) < 2.6 * error
    assert np.mean(naive) - 0.5 > 2.6 * np.std(naive) / np.sqrt(len(naive)) + 0.03


def test_a_planted_direction_is_found_at_its_site_by_every_fold(plant):
    found, _ = trials(plant(60, size=2.0, sites=4, at=2), ("ridge", "mean_difference"))
    assert {choice.candidate.site for choice in found.choices} == {Site(2)}
    assert found.auc[0] > 0.8


def test_of_equals_the_earliest_site_and_strongest_penalty_is_taken(plant):
    found, _ = trials(plant(30, size=40.0, sites=3))
    assert found.auc[0] == 1.0
    first = found.candidates[0]
    assert all(choice.candidate == first for choice in found.choices)
    assert (first.site, first.penalty) == (Site(0), 1e5)


def test_held_out_scores_do_not_depend_on_what_is_held_out(plant):
    """Nothing of the outer fold leaks: changing its rows moves no choice and no other score."""
    acts = plant(24, size=0.5)
    before, fold_of = trials(acts)
    changed = acts.values.clone()
    changed[torch.from_numpy(fold_of == 0)] *= -3
    after, _ = trials(plant(24, size=0.5).__class__(**{**vars(acts), "values": changed}))
    assert before.choices[0].candidate == after.choices[0].candidate
    test = np.flatnonzero(fold_of == 0)
    w_before, w_after = before.held_out()[test], after.held_out()[test]
    assert not np.allclose(w_before, w_after)
    np.testing.assert_array_equal(before.inner[0], after.inner[0])

"""Held-out scores: nothing leaks, chance is uniform, and the search is paid for."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, kstest
from torch import Tensor

from steerkit.activations import Activations
from steerkit.extraction import METHODS
from steerkit.extraction.labelled import Labelled
from steerkit.extraction.scoring import Plan, maxima
from steerkit.protocols import Extractor
from steerkit.statistics import null

Make = Callable[..., Activations]


def make_plan(acts: Activations, n: int = 49, seed: int = 0) -> tuple[Plan, Labelled]:
    data = Labelled.of(acts)
    return Plan.make(data, n_folds=5, n_permutations=n, seed=seed), data


class Spy:
    """The mean difference, noting which groups it was shown."""

    supervised = True
    estimates = "the mean difference"

    def __init__(self) -> None:
        self.seen: list[set[str]] = []

    def __call__(self, x: Tensor, labels: Tensor, groups: list[str], *, seed: int) -> Tensor:
        self.seen.append(set(groups))
        return x[labels == 1].mean(0) - x[labels == 0].mean(0)


def test_mates_of_a_pair_are_held_out_together(plant: Make) -> None:
    plan, data = make_plan(plant(20), n=0)
    spy = Spy()
    plan.score(data.rows(0), {"spy": spy})
    assert len(spy.seen) == 5
    left_out = [set(data.groups) - seen for seen in spy.seen]
    assert set.union(*left_out) == set(data.groups)
    assert sum(map(len, left_out)) == 20, "no group is in two folds or half in one"


def test_tokens_of_a_prompt_stay_in_its_fold_and_keep_its_label(plant: Make) -> None:
    acts = plant(12)
    rows = acts.select([i for i in range(24) for _ in range(3)])
    plan, data = make_plan(rows)
    assert (plan.row_folds.reshape(24, 3) == plan.row_folds.reshape(24, 3)[:, :1]).all()
    labels = plan.permuted[data.owner].reshape(24, 3, -1)
    assert (labels == labels[:, :1]).all()


def test_repeating_rows_does_not_make_the_interval_narrower(plant: Make) -> None:
    acts = plant(25, size=1.0)
    one, data = make_plan(acts, n=0)
    many, again = make_plan(acts.select([i for i in range(50) for _ in range(4)]), n=0)
    method = {"m": METHODS["mean_difference"]}
    a, b = one.score(data.rows(0), method)["m"].auc, many.score(again.rows(0), method)["m"].auc
    assert a.n == b.n == 25
    assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high))


def test_the_draws_are_refits_under_the_permuted_labels(plant: Make) -> None:
    plan, data = make_plan(plant(20, size=1.0), n=3)
    x = data.rows(0)
    fast = plan.score(x, {"m": METHODS["mean_difference"]})["m"]
    slow = plan.score(x, {"m": Spy()})["m"]
    assert fast.draws == pytest.approx(slow.draws)
    assert fast.auc == slow.auc


@pytest.mark.parametrize("name", METHODS.names())
@pytest.mark.parametrize("paired", [True, False])
def test_p_values_are_uniform_where_there_is_nothing_to_find(
    name: str, paired: bool, plant: Make
) -> None:
    """The C that the logistic null borrows from the observed labels does not show."""
    if not paired and getattr(METHODS[name], "needs_pairs", False):
        pytest.skip(f"{name} reads pairs only")
    method: dict[str, Extractor] = {name: METHODS[name]}
    p = []
    for seed in range(50):
        acts = plant(16, 4, size=0.0, paired=paired, seed=seed)
        plan, data = make_plan(acts, n=19, seed=seed)
        found = plan.score(data.rows(0), method)[name]
        p.append(null("", found.auc.value, found.draws).p)
    assert kstest(np.array(p) - 0.025, "uniform").pvalue > 0.005


def test_the_correction_pays_for_the_search(plant: Make) -> None:
    """Of ten sites without signal the best looks good alone, and not once corrected."""
    method = {"m": METHODS["mean_difference"]}
    alone = corrected = 0
    for seed in range(60):
        acts = plant(12, 4, size=0.0, sites=10, seed=seed)
        plan, data = make_plan(acts, n=39, seed=seed)
        held = [plan.score(data.rows(site), method)["m"] for site in range(10)]
        best = max(held, key=lambda h: h.auc.value)
        alone += null("", best.auc.value, best.draws).p <= 0.05
        corrected += null("", best.auc.value, maxima(held)).p <= 0.05
    assert alone >= 12
    assert binomtest(corrected, 60, 0.05).pvalue > 0.001


def test_a_real_effect_survives_the_correction(plant: Make) -> None:
    plan, data = make_plan(plant(60, 8, size=2.0, sites=4), n=99)
    held = [plan.score(data.rows(i), {"m": METHODS["lda"]})["m"] for i in range(4)]
    assert all(null("", h.auc.value, maxima(held)).p == 0.01 for h in held)


def test_random_directions_are_no_better_than_chance_on_noise(plant: Make) -> None:
    plan, data = make_plan(plant(100, 8, size=0.0))
    for shaped in (False, True):
        draws = plan.random(data.rows(0), 200, shaped=shaped)
        assert draws.shape == (200,) and (draws >= 0.5).all() and draws.mean() < 0.57


def test_shaped_random_directions_follow_the_covariance(make: Make) -> None:
    """Where the signal lies along the widest axis, directions of the data's shape find it."""
    x = torch.randn(200, 50, generator=torch.Generator().manual_seed(0))
    x[:, 0] *= 30
    x[:100, 0] += 60
    plan, data = make_plan(make(x[:100], x[100:]), n=0)
    isotropic = plan.random(data.rows(0), 200)
    shaped = plan.random(data.rows(0), 200, shaped=True)
    assert np.median(shaped) > np.median(isotropic) > 0.6


def test_everything_follows_from_the_seed(plant: Make) -> None:
    acts = plant(20, size=1.0)
    runs = []
    for seed in (0, 0, 1):
        plan, data = make_plan(acts, seed=seed)
        found = plan.score(data.rows(0), {"m": METHODS["logistic"]})["m"]
        runs.append((found.auc, found.draws.tolist(), plan.random(data.rows(0), 5).tolist()))
    assert runs[0] == runs[1] != runs[2]

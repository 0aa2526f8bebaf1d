"""How often `extract`'s p-values cry wolf over 1,000 null draws, and how often they see one.

The scores are those of `extract`: folds, refits and permuted labellings come from `Plan`.
Only the bootstrap interval, which no p-value reads, is left out to save time.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from scipy.stats import binom

from steerkit.activations import Activations
from steerkit.extraction import METHODS, SPANS
from steerkit.extraction import subspace_scores as inside
from steerkit.extraction.labelled import Labelled
from steerkit.extraction.scoring import Plan, maxima
from steerkit.statistics import null, wilson

Make = Callable[..., Activations]
LEVEL = 0.05
N_PERMUTATIONS = 19
"""The smallest p is then 1 / 20, exactly the level: the least power that any number gives."""
MEAN_DIFFERENCE = {"mean_difference": METHODS["mean_difference"]}


class Rejections(NamedTuple):
    """Draws in which p was at most 5%."""

    permutation: int
    """At the first site, chosen beforehand."""
    family: int
    """At whichever of the sites was best, corrected for both."""


def plan_of(acts: Activations, seed: int, n_folds: int = 2) -> Plan:
    plan = Plan.make(Labelled.of(acts), n_folds=n_folds, n_permutations=N_PERMUTATIONS, seed=seed)
    plan.__dict__["_draws"] = np.ones((len(acts), 1))
    return plan


def rejections(plant: Make, draws: int, *, paired: bool, size: float, n: int) -> Rejections:
    """Over draws of n prompts a side at two sites of width 4, positives moved along one axis."""
    alone = corrected = 0
    for seed in range(draws):
        acts = plant(n, 4, size=size, paired=paired, sites=2, seed=seed, texts=["a"] * 2 * n)
        plan = plan_of(acts, seed)
        held = [plan.score(plan.data.rows(i), MEAN_DIFFERENCE)["mean_difference"] for i in (0, 1)]
        best = max(h.auc.value for h in held)
        alone += null("", held[0].auc.value, held[0].draws).p <= LEVEL
        corrected += null("", best, maxima(held)).p <= LEVEL
    return Rejections(alone, corrected)


@pytest.mark.parametrize("paired", [True, False])
def test_false_alarms_are_as_many_as_the_level_says(paired: bool, plant: Make) -> None:
    found = rejections(plant, 1000, paired=paired, size=0.0, n=12)
    low, high = binom.interval(0.999, 1000, LEVEL)
    for count in found:
        assert low <= count <= high, found


@pytest.mark.parametrize("paired", [True, False])
def test_a_shift_of_two_standard_deviations_is_found_in_sixteen_prompts_a_side(
    paired: bool, plant: Make
) -> None:
    """In pairs the noise within one counts, which is that of an unpaired prompt."""
    found = rejections(plant, 200, paired=paired, size=2.0, n=16)
    for count in found:
        assert wilson(count, 200).low >= 0.8, found


def test_subspaces_keep_the_level_also_where_k_is_chosen(plant: Make) -> None:
    """Each labelling takes its own best k, as the observed one does."""
    count = 0
    for seed in range(1000):
        acts = plant(12, 4, size=0.0, paired=True, seed=seed, texts=["a"] * 24)
        plan = plan_of(acts, seed)
        categories = plan.data.acts.prompt_index * 0
        held = inside.score(plan, plan.data.rows(0), SPANS["pca"], (1, 2), categories)
        best = max(h.auc.value for h in held.values())
        count += null("", best, np.max([h.draws for h in held.values()], axis=0)).p <= LEVEL
    low, high = binom.interval(0.999, 1000, LEVEL)
    assert low <= count <= high

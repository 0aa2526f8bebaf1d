"""Random directions go through the same choice of site, and are chance where there is none."""

import numpy as np
import pytest

from steerkit.probing.chance import random_directions
from steerkit.probing.nested import crossed
from steerkit.probing.verbs import _folds, one_row_each


def drawn(acts, n=99, **options):
    data = one_row_each(acts)
    return random_directions(data, crossed(_folds(data, 4, 0)), n, seed=0, **options)


@pytest.mark.parametrize("shaped", [False, True])
def test_nothing_planted_gives_one_half_though_sites_and_signs_are_chosen(plant, shaped):
    means = [drawn(plant(20, sites=3, seed=seed), 49, shaped=shaped).mean() for seed in range(30)]
    assert abs(np.mean(means) - 0.5) < 2.6 * np.std(means) / np.sqrt(len(means))


def test_a_concept_that_fills_the_space_is_read_by_random_directions(plant):
    acts = plant(40, 2, size=20.0, sites=1)
    assert np.median(drawn(acts, shaped=False)) > 0.95
    assert np.median(drawn(acts, shaped=True)) > 0.95


def test_the_site_is_chosen_where_it_separates(plant):
    """One good site among four useless ones is found: maxima, as for the probe."""
    one = drawn(plant(60, 3, size=6.0, sites=4, at=3), shaped=False).mean()
    assert one > drawn(plant(60, 3, size=0.0, sites=4), shaped=False).mean() + 0.2


def test_the_seed_decides(plant):
    acts = plant(20)
    np.testing.assert_array_equal(drawn(acts, shaped=True), drawn(acts, shaped=True))

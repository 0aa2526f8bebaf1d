"""Concept dictionaries: planted clusters, the laws of semi-NMF, and the published L1 form."""

from itertools import pairwise

import numpy as np
import pytest

from steerkit.comparisons.dictionaries import METHODS, fit_dictionary, match, semi_nmf
from steerkit.errors import MethodError
from steerkit.statistics import Floats

CENTRES = np.eye(6)[:3] * 6 + 2


@pytest.fixture
def states() -> Floats:
    rng = np.random.default_rng(0)
    return np.repeat(CENTRES, 20, 0) + 0.3 * rng.normal(size=(60, 6))


@pytest.mark.parametrize("method", ["kmeans", "semi_nmf"])
def test_planted_clusters_are_found_whatever_the_seed(states: Floats, method: str) -> None:
    for seed in range(3):
        found = fit_dictionary(states, 3, method=method, seed=seed)  # type: ignore[arg-type]
        concept = found.assign(states)
        for rows in np.split(concept, 3):
            assert len(set(rows)) == 1
        assert len(set(concept)) == len(found) == 3
        order = concept[[0, 20, 40]]
        # Codes weigh the mean of all states differently from a centroid, by up to a mean of 2.
        slack = 0.4 if method == "kmeans" else 2.0
        np.testing.assert_allclose(found.centres[order], CENTRES, atol=slack)
        assert (found.encode(states) >= 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_more_concepts_than_states_and_equal_states_crash_nothing(method: str) -> None:
    few = np.repeat([[1.0, 2, 3], [4, 5, 7]], [7, 5], axis=0)
    found = fit_dictionary(few, 5, method=method)  # type: ignore[arg-type]
    assert 1 <= len(found) <= 2 and found.centres.shape == (len(found), 3)
    assert len(fit_dictionary(np.ones((4, 3)), 2, method=method)) == 1  # type: ignore[arg-type]


def test_semi_nmf_never_rises_and_ends_where_neither_factor_improves() -> None:
    from scipy.optimize import nnls

    rng = np.random.default_rng(3)
    z = np.abs(rng.normal(size=(40, 4))) @ rng.normal(size=(4, 8)) + 0.1 * rng.normal(size=(40, 8))
    starts = z[[0, 7, 19, 30]]

    def error(steps: int) -> float:
        v, u = semi_nmf(z, starts, steps=steps)
        return float(((z - v @ u) ** 2).sum())

    falls = [error(steps) for steps in (0, 1, 3, 10, 30, 100, 300)]
    assert all(b <= a * (1 + 1e-9) for a, b in pairwise(falls))
    v, u = semi_nmf(z, starts)
    assert (v >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(u, axis=1), 1)
    np.testing.assert_allclose(v, [nnls(u.T, row)[0] for row in z], atol=1e-9)
    free = np.linalg.lstsq(v, z, rcond=None)[0]
    assert falls[-1] <= ((z - v @ free) ** 2).sum() * 1.1
    assert falls[-1] < 0.2 * falls[0], "better than the clusters it started from"


def test_the_published_form_puts_everything_into_one_concept(states: Floats) -> None:
    """Divided by the norm of the whole matrix, no row outweighs a penalty of 1."""
    assert len(fit_dictionary(states, 3, method="snmf_repo")) == 1


def test_matching_is_a_permutation_of_highest_total_cosine() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(5, 9))
    order = rng.permutation(5)
    pairs, cosine = match(a, 3 * a[order])
    assert [int(order[j]) for _, j in pairs] == [int(i) for i, _ in pairs]
    np.testing.assert_allclose(cosine, 1)


def test_unknown_dictionaries_are_refused(states: Floats) -> None:
    with pytest.raises(MethodError, match="no dictionary named 'nmf'"):
        fit_dictionary(states, 3, method="nmf")  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="at least one concept"):
        fit_dictionary(states, 0)

"""The similarity measures against direct formulas, their invariances and known failures."""

import math

import numpy as np
import pytest

from steerkit.comparisons import biased_linear_cka, linear_cka, procrustes, rsa
from steerkit.comparisons.geometry import (
    Features,
    cka_matrix,
    procrustes_pairs,
    rsa_matrix,
)
from steerkit.errors import ActivationError
from steerkit.statistics import Floats

MEASURES = (linear_cka, rsa, procrustes)


@pytest.fixture
def x() -> Floats:
    """Twelve rows of seven features."""
    return np.random.default_rng(0).normal(size=(12, 7)) + 3


@pytest.fixture
def y(x: Floats) -> Floats:
    """Related features of another width."""
    rng = np.random.default_rng(1)
    return x @ rng.normal(size=(7, 5)) + rng.normal(size=(12, 5))


def hsic1(k: Floats, m: Floats) -> float:
    """Song et al.'s estimator over all quadruples of different rows."""
    n = len(k)
    total, count = 0.0, 0
    for i in range(n):
        for j in range(n):
            for q in range(n):
                for r in range(n):
                    if len({i, j, q, r}) == 4:
                        total += k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
                        count += 1
    return total / count


def test_debiased_cka_is_the_u_statistic_summed_by_loops(x: Floats, y: Floats) -> None:
    k, m = x[:9] @ x[:9].T, y[:9] @ y[:9].T
    expected = hsic1(k, m) / math.sqrt(hsic1(k, k) * hsic1(m, m))
    assert linear_cka(x[:9], y[:9]) == pytest.approx(expected, abs=1e-10)


def test_biased_cka_is_the_centred_kernel_alignment(x: Floats, y: Floats) -> None:
    n = len(x)
    h = np.eye(n) - 1 / n
    k, m = h @ x @ x.T @ h, h @ y @ y.T @ h
    expected = np.trace(k @ m) / math.sqrt(np.trace(k @ k) * np.trace(m @ m))
    assert biased_linear_cka(x, y) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("correlation", ["spearman", "pearson"])
@pytest.mark.parametrize("dissimilarity", ["euclidean", "correlation"])
def test_rsa_is_the_correlation_of_pairs_by_loops(
    x: Floats, y: Floats, dissimilarity: str, correlation: str
) -> None:
    from scipy.stats import pearsonr, spearmanr

    def pairs(v: Floats) -> list[float]:
        return [
            float(np.linalg.norm(v[i] - v[j]))
            if dissimilarity == "euclidean"
            else 1 - pearsonr(v[i], v[j])[0]
            for i in range(len(v))
            for j in range(i + 1, len(v))
        ]

    # Centring rows moves correlation distances, so they are those of centred features.
    u, v = (w - w.mean(0) for w in (x, y))
    expected = (spearmanr if correlation == "spearman" else pearsonr)(pairs(u), pairs(v))[0]
    found = rsa(x, y, dissimilarity=dissimilarity, correlation=correlation)  # type: ignore[arg-type]
    assert found == pytest.approx(expected, abs=1e-9)


def test_procrustes_is_what_the_best_rotation_leaves(x: Floats) -> None:
    from scipy.linalg import orthogonal_procrustes

    y = x @ np.random.default_rng(2).normal(size=(7, 7))
    a, b = (v - v.mean(0) for v in (x, y))
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    rotation, _ = orthogonal_procrustes(a, b)
    left = np.linalg.norm(a @ rotation - b) ** 2
    assert 2 - 2 * procrustes(x, y) == pytest.approx(left, abs=1e-10)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda f: f.__name__)
def test_rotation_and_isotropic_scale_and_shift_change_nothing(measure, x, y) -> None:  # type: ignore[no-untyped-def]
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(7, 7)))[0]
    moved = 4.2 * x @ rotation + 11
    assert measure(x, moved) == pytest.approx(1, abs=1e-9)
    assert measure(moved, y) == pytest.approx(measure(x, y), abs=1e-9)
    assert measure(y, x) == pytest.approx(measure(x, y), abs=1e-9)


def test_unrelated_wide_features_are_alike_only_to_the_biased_measure() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 4096)), rng.normal(size=(64, 4096))
    assert biased_linear_cka(x, y) > 0.95
    assert abs(linear_cka(x, y)) < 0.05
    assert abs(rsa(x, y)) < 0.1
    assert procrustes(x, y) > 0.95, "which is why it is read beside its null"


def test_all_sites_against_all_equal_each_two_alone(x: Floats, y: Floats) -> None:
    a, b = Features.of([x, x**2]), Features.of([y, np.tanh(y), y**3])
    rows = np.array([0, 2, 3, 5, 7, 8, 11])
    for i, u in enumerate((x, x**2)):
        for j, v in enumerate((y, np.tanh(y), y**3)):
            for matrix, alone in ((cka_matrix, linear_cka), (rsa_matrix, rsa)):
                assert matrix(a, b)[i, j] == pytest.approx(alone(u, v), abs=1e-9)
                some = matrix(a, b, rows, rows)[i, j]
                assert some == pytest.approx(alone(u[rows], v[rows]), abs=1e-9)
            near = procrustes_pairs(a, b, [(i, j)], rows, rows)[0]
            assert near == pytest.approx(procrustes(u[rows], v[rows]), abs=1e-9)


def test_features_that_do_not_vary_are_not_a_number(x: Floats) -> None:
    still = np.full((12, 3), 7.1)
    for measure in MEASURES:
        assert math.isnan(measure(x, still))


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ActivationError, match=r"at least 5 .*give more prompts"):
        linear_cka(np.zeros((4, 3)), np.zeros((4, 3)))

"""Intervals cover, and the bootstrap that they replace does not."""

import numpy as np

from steerkit.comparisons.geometry import Features, cka_matrix, procrustes_pairs
from steerkit.comparisons.resampling import jackknife, repaired
from steerkit.statistics import Floats, null

D = 8


def drawn(rng: np.random.Generator, n: int, mixing: Floats, noise: float) -> tuple[Floats, Floats]:
    z = rng.normal(size=(n, D)) * np.linspace(2, 0.5, D)
    return z, z @ mixing + noise * rng.normal(size=(n, D))


def population(mixing: Floats, noise: float) -> Floats:
    """CKA and Procrustes of infinitely many rows: from covariances."""
    a = np.diag(np.linspace(2, 0.5, D) ** 2)
    cross, b = a @ mixing, mixing.T @ a @ mixing + noise**2 * np.eye(D)
    nuclear = np.linalg.svd(cross, compute_uv=False).sum()
    return np.array(
        [
            (cross**2).sum() / np.sqrt((a**2).sum() * (b**2).sum()),
            nuclear / np.sqrt(np.trace(a) * np.trace(b)),
        ]
    )


def test_intervals_cover_the_population_value_and_a_bootstrap_lies_above_it() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(D, D)) / np.sqrt(D)
    truth = population(mixing, 1.0)
    covered, shift, raw, reps, n = np.zeros(2), [], [], 200, 40
    groups = [str(i) for i in range(n)]
    for _ in range(reps):
        x, y = drawn(rng, n, mixing, 1.0)
        a, b = Features.of([x]), Features.of([y])

        def value(rows: np.ndarray, a: Features = a, b: Features = b) -> Floats:
            cka = cka_matrix(a, b, rows, rows)[0, 0]
            return np.array([cka, procrustes_pairs(a, b, [(0, 0)], rows, rows)[0]])

        found = jackknife(value, groups)
        covered += [e.low <= t <= e.high for e, t in zip(found, truth, strict=True)]
        raw.append(value(np.arange(n)))
        shift.append(value(rng.integers(0, n, n))[0] - raw[-1][0])
    # 99.9% binomial bounds of 95% over 200 draws are 89% and 99%.
    assert (covered / reps >= 0.89).all() and (covered / reps <= 0.99).all()
    assert np.mean(shift) > 4 * np.std(shift) / np.sqrt(reps), "repeated rows inflate"
    off = np.mean(raw, 0) - truth
    assert abs(off[0]) < 0.01 < off[1], "Procrustes flatters itself, debiased CKA does not"


def test_equal_models_have_an_interval_without_width() -> None:
    x = np.random.default_rng(0).normal(size=(20, 4))
    a = Features.of([x])
    found = jackknife(lambda rows: cka_matrix(a, a, rows, rows)[0], [str(i) for i in range(20)])[0]
    assert [found.value, found.low, found.high, found.n] == [1, 1, 1, 20]


def test_re_pairing_repeats_no_row_and_exchanges_whole_groups() -> None:
    groups = ["a", "a", "b", "c", "c", "c", "d", "d"]
    rng = np.random.default_rng(0)
    for _ in range(20):
        left, right = repaired(groups, rng)
        assert len(left) == len(right) == len(set(left)) == len(set(right))
        partners = {(groups[i], groups[j]) for i, j in zip(left, right, strict=True)}
        assert len({a for a, _ in partners}) == len(partners), "one partner a group"


def test_null_p_values_are_uniform_where_groups_are_alike_inside() -> None:
    """A prompt's template makes both models' states alike inside a group, and nothing else."""
    rng = np.random.default_rng(1)
    groups = [str(i // 3) for i in range(45)]
    ps = []
    for _ in range(150):
        sides = [
            np.repeat(rng.normal(size=(15, D)), 3, 0) * 2 + rng.normal(size=(45, D))
            for _ in range(2)
        ]
        a, b = (Features.of([s]) for s in sides)
        draws = [cka_matrix(a, b, *repaired(groups, rng))[0, 0] for _ in range(39)]
        ps.append(null("", cka_matrix(a, b)[0, 0], draws).p)
    # 99.9% binomial bounds of 5% over 150 draws.
    assert 0 <= np.mean(np.array(ps) <= 0.05) <= 0.12
    assert abs(np.mean(ps) - 0.5) < 3.3 * np.sqrt(1 / 12 / 150)

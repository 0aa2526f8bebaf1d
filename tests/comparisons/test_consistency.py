"""Consistency and recovery over concepts: the pair of models is the unit."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from steerkit.comparisons import consistency_recovery
from steerkit.errors import MethodError


def pair(rng: np.random.Generator, *, slope: float = 0.0, shared: float = 0.0, n: int = 12) -> Any:
    """One pair's concepts: a level common to all of them in both numbers, and a slope within."""
    level = shared * rng.normal(size=2)
    x = rng.normal(size=n) + level[0]
    y = slope * (x - level[0]) + rng.normal(size=n) + level[1]
    concepts = [
        SimpleNamespace(consistency=a, recovery=b, recovery_global=c)
        for a, b, c in zip(x, y, rng.normal(size=n), strict=True)
    ]
    return SimpleNamespace(concepts=concepts, provenance={})


def many(rng: np.random.Generator, k: int, **options: Any) -> tuple[list[Any], list[str]]:
    return [pair(rng, **options) for _ in range(k)], [f"pair {i}" for i in range(k)]


def test_the_correlation_is_pearsons_over_all_concepts() -> None:
    shifts, names = many(np.random.default_rng(0), 6, slope=1.0)
    found = consistency_recovery(shifts, names, n_resamples=200)
    x, y = (
        [getattr(c, name) for s in shifts for c in s.concepts]
        for name in ("consistency", "recovery")
    )
    assert found.value.value == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert found.value.n == 6 and found.n_concepts == 72 and found.conclusive
    assert found.value.low > 0.3 and found.exchanged.p < 0.01
    assert found.global_shift.low < 0 < found.global_shift.high
    one = shifts[2].concepts
    alone = np.corrcoef([c.consistency for c in one], [c.recovery for c in one])[0, 1]
    assert found.within["pair 2"] == pytest.approx(alone)
    assert json.loads(json.dumps(found.to_json()))["value"]["unit"] == "Pearson"


def test_few_pairs_are_inconclusive_however_many_concepts() -> None:
    shifts, names = many(np.random.default_rng(1), 3, slope=1.0, n=20)
    found = consistency_recovery(shifts, names, n_resamples=99)
    assert (found.value.low, found.value.high) == (-1, 1) and not found.conclusive
    assert "inconclusive: the unit is the pair of models" in found.summary()


def test_levels_that_pairs_share_are_no_relation_between_concepts() -> None:
    """Concepts of a pair move together: counting them alone, the interval misses 0 too often."""
    rng, pairs_miss, concepts_miss, reps = np.random.default_rng(2), 0, 0, 120
    for seed in range(reps):
        shifts, names = many(rng, 12, shared=2.0)
        found = consistency_recovery(shifts, names, n_resamples=99, seed=seed)
        pairs_miss += not found.value.low <= 0 <= found.value.high
        half = 1.96 / np.sqrt(found.n_concepts - 3)
        concepts_miss += abs(np.arctanh(found.value.value)) > half
    assert concepts_miss / reps > 0.4
    # The bootstrap of a correlation over 12 clusters is a little narrow; 99.9% bound of 10%.
    assert pairs_miss / reps <= 0.20
    # Exchanged within pairs, the shared level stays where it was.
    flat = consistency_recovery(*many(rng, 12, shared=2.0), n_resamples=199)
    assert flat.exchanged.p > 0.001


def test_what_cannot_be_correlated_is_refused() -> None:
    shifts, _ = many(np.random.default_rng(3), 2)
    with pytest.raises(MethodError, match="one pair name for each; got 2 and 1"):
        consistency_recovery(shifts, ["a"])
    with pytest.raises(MethodError, match="at least 3; got 0"):
        consistency_recovery([SimpleNamespace(concepts=[], provenance={})])  # type: ignore[list-item]

"""Shifts of concepts: a global one is nothing, a planted one is found, noise makes none up."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import steerkit as sk
from steerkit.comparisons import measure_representation_shift, shift_of_states
from steerkit.datasets import refusal
from steerkit.errors import ActivationError, MethodError, ModelError
from steerkit.statistics import Floats

D = 12
CENTRES = np.eye(D)[:3] * 8


def drawn(
    rng: np.random.Generator, *, own: float = 0.0, noise: float = 0.3, per: int = 1, n: int = 96
) -> tuple[Floats, Floats, list[str]]:
    """States of three concepts; all shift by 5 along one axis, the first concept also by `own`.

    Rows of one group share half of the noise in their shift.
    """
    concept = rng.integers(0, 3, n)
    a = CENTRES[concept] + 0.5 * rng.normal(size=(n, D))
    groups = np.arange(n) // per
    shared = rng.normal(size=(n // per + 1, D))[groups]
    shift = 5 * np.eye(D)[10] + noise * (shared + rng.normal(size=(n, D))) / np.sqrt(2)
    shift[concept == 0] += own * np.eye(D)[11]
    return a, a + shift, [f"g{g}" for g in groups]


@pytest.mark.parametrize("method", ["kmeans", "semi_nmf"])
def test_a_global_shift_is_nothing_beyond_itself(method: Any) -> None:
    a, b, groups = drawn(np.random.default_rng(0))
    found = shift_of_states(a, b, groups, n_concepts=3, method=method, n_permutations=199)
    assert not found.unchanged and not found.beyond_global
    assert "nothing beyond the global shift" in found.summary()
    assert found.gain < 0.02
    np.testing.assert_allclose(found.global_shift[10], 5, atol=0.2)
    for c in found.concepts:
        assert not c.found
        assert c.consistency > 0.95, "looks like a concept's own shift"
        assert c.consistency_random > 0.95, "and is not"
        # What is published as recovery succeeds as well with the shift of all states.
        assert c.recovery == pytest.approx(c.recovery_global, abs=0.02) and c.recovery > 0.05


@pytest.mark.parametrize("method", ["kmeans", "semi_nmf"])
def test_a_planted_shift_of_one_concept_is_found_with_its_size(method: Any) -> None:
    a, b, groups = drawn(np.random.default_rng(1), own=1.5)
    found = shift_of_states(a, b, groups, n_concepts=3, method=method, n_permutations=199)
    assert found.beyond_global and found.beyond.p == 1 / 200
    first = min(found.concepts, key=lambda c: np.linalg.norm(found.vectors[c.index] - CENTRES[0]))
    assert first.found
    extra = found.shifts[first.index] - found.global_shift
    assert extra[11] / np.linalg.norm(extra) > 0.9
    rows = (np.linalg.norm(a - CENTRES[0], axis=1) < 4).mean()
    # Less the mean over all states, of which the concept itself is a part.
    assert first.along.low < 1.5 * (1 - rows) < first.along.high + 0.2
    assert 0.1 < found.gain < 0.4


@pytest.mark.parametrize("per", [1, 4])
def test_false_alarms_stay_at_their_level_and_power_is_there(per: int) -> None:
    rng = np.random.default_rng(2)
    ps, family = [], []
    for i in range(100):
        found = shift_of_states(
            *drawn(rng, per=per), n_concepts=3, n_permutations=39, n_seeds=0, seed=i
        )
        ps.append(found.beyond.p)
        family.append(any(c.found for c in found.concepts))
    # 99.9% binomial bounds of 5% over 100 draws.
    assert np.mean(np.array(ps) <= 0.05) <= 0.13 and np.mean(family) <= 0.13
    assert abs(np.mean(ps) - 0.5) < 3.3 * np.sqrt(1 / 12 / 100)
    power = [
        shift_of_states(
            *drawn(rng, per=per, own=0.5), n_concepts=3, n_permutations=39, n_seeds=0, seed=i
        ).beyond_global
        for i in range(30)
    ]
    assert np.mean(power) >= 0.8


def test_intervals_cover_how_far_a_concept_moved_beyond_the_rest() -> None:
    rng, covered, reps = np.random.default_rng(6), 0, 100
    for seed in range(reps):
        a, b, groups = drawn(rng, own=1.0, per=2)
        found = shift_of_states(a, b, groups, n_concepts=3, n_permutations=1, n_seeds=0, seed=seed)
        first = np.linalg.norm(found.vectors - CENTRES[0], axis=1).argmin()
        extra = found.shifts[first] - found.global_shift
        # A third of all states are the concept's own.
        truth = 1.0 * (1 - 1 / 3) * extra[11] / np.linalg.norm(extra)
        along = found.concepts[first].along
        covered += along.low <= truth <= along.high
    # 99.9% binomial bounds of 95% over 100 draws are 87% and 100%.
    assert covered / reps >= 0.87


def test_relabelling_keeps_to_what_groups_allow() -> None:
    from steerkit.comparisons.concept_shifts import _relabelled

    concept = np.array([0, 1, 1, 2, 2, 0, 0, 1])
    groups = ["a", "a", "a", "b", "b", "c", "c", "d"]
    seen = np.stack(_relabelled(concept, groups, 200, np.random.default_rng(0)))
    assert (np.sort(seen[:, :3], 1) == [0, 1, 1]).all(), "a mixed group keeps its labels"
    assert (seen[:, 3] == seen[:, 4]).all() and (seen[:, 5] == seen[:, 6]).all()
    assert {tuple(row) for row in seen[:, [3, 5, 7]]} == {
        (2, 0, 1), (2, 1, 0), (0, 2, 1), (0, 1, 2), (1, 0, 2), (1, 2, 0)
    }  # fmt: skip
    assert len({tuple(row) for row in seen[:, :3]}) == 3


def test_other_prompts_states_look_recovered_too() -> None:
    """Re-paired, every state moves to where states are on average: nothing but regression."""
    a, b, groups = drawn(np.random.default_rng(3), own=1.5)
    found = shift_of_states(a, b, groups, n_concepts=3, n_permutations=19)
    for c in found.concepts:
        assert c.consistency_permuted > 0.3
        assert c.consistency > c.consistency_permuted


def test_a_model_against_itself_is_unchanged(base: Any) -> None:
    for seed in (0, 1):
        found = measure_representation_shift(
            base, base, refusal("held_out", n=16, seed=seed), site=3, seed=seed, progress=False
        )
        assert found.unchanged and not found.beyond_global
        assert "unchanged" in found.summary() and found.beyond.p == 1
        assert not any(c.found for c in found.concepts)


def test_alignment_moves_harmful_requests_and_its_shift_steers_the_base(
    base: Any, aligned: Any
) -> None:
    prompts = refusal("held_out", n=40)
    found = measure_representation_shift(
        base, aligned, prompts, site=3, n_concepts=4, n_permutations=199, progress=False
    )
    assert found.beyond_global
    harmful = {p.text for p in prompts.positive}
    share = {
        c.index: np.mean([found.prompts[i] in harmful for i in found.members[c.index]])
        for c in found.concepts
    }
    most = max(share, key=lambda i: (share[i], found.concepts[i].n_score))
    assert share[most] > 0.9 and found.concepts[most].found
    assert "sorry" in found.concepts[most].shift_words
    for c in found.concepts:
        assert all(0 <= v <= 1 for v in (c.overlap, c.overlap_plain, c.overlap_global))
    assert found.concepts[most].overlap > found.concepts[most].overlap_plain
    beyond, direction = found.direction(most), found.direction(most, beyond_global=False)
    own = float(np.linalg.norm(found.shifts[most] - found.global_shift))
    assert beyond.scale == pytest.approx(own, rel=1e-6)
    assert direction.scale == pytest.approx(found.concepts[most].size, rel=1e-6)
    asked = [p.text for p in prompts.negative[:12]]
    chance = torch.randn(20, 96, generator=torch.Generator().manual_seed(0))
    randoms = [replace(direction, unit=u / u.norm()) for u in chance]
    views = [
        base,
        *(
            base.with_(sk.Add(d, strength=2.0, positions="last_prompt"))
            for d in (direction, *randoms)
        ),
    ]
    begun = [
        np.mean([c.text in ("i", "sorry") for c in v.generate(asked, max_new_tokens=1)])
        for v in views
    ]
    assert begun[0] == 0 and begun[1] > 0.9 > 0.1 > max(begun[2:])


def test_results_are_plain_json_and_tables() -> None:
    found = shift_of_states(*drawn(np.random.default_rng(4), own=1.0), n_permutations=19)
    data = json.loads(json.dumps(found.to_json()))
    assert data["beyond"]["p"] == found.beyond.p and "2501.03012" in data["paper"]
    assert len(data["concepts"]) == len(found.concepts)
    assert "| concept |" in found.table() and "<table>" in found._repr_html_()
    assert sum(len(m) for m in found.members) == found.n_score
    assert found.stability > 0.5


def test_what_cannot_be_measured_is_refused(base: Any, tiny_model: Any) -> None:
    rng = np.random.default_rng(5)
    a, b, groups = drawn(rng)
    with pytest.raises(ActivationError, match="one group a row"):
        shift_of_states(a, b[:-1], groups)
    with pytest.raises(ActivationError, match="at least 4 groups"):
        shift_of_states(a, b, ["x", "y", "z"] * 32)
    with pytest.raises(MethodError, match="nothing beyond the global shift"):
        shift_of_states(a, b, groups, n_concepts=1)
    with pytest.raises(ModelError, match="has width 96"):
        measure_representation_shift(base, tiny_model, ["hi"], site=1, progress=False)
    with pytest.raises(MethodError, match="bare states"):
        shift_of_states(a, b, groups, n_permutations=0).direction(0)

"""Strengths that spend a budget: on the toy, on the shipped organism, and where none does."""

from typing import Any

import numpy as np
import pytest
import torch

import steerkit as sk
from steerkit.direction import Direction, Directions
from steerkit.errors import (
    ActivationError,
    DirectionError,
    InterventionError,
    MethodError,
    PromptError,
)
from steerkit.interventions import Add, load_steering, save_steering
from steerkit.prompts import Contrast
from steerkit.scoring import kl_per_token, with_own_answers
from steerkit.searches import Calibrations, LogOdds, calibrate, verify
from steerkit.searches.calibration.setup import parts
from steerkit.searches.measure import Side
from steerkit.site import Site


@pytest.fixture(scope="module")
def aligned() -> Any:
    return sk.load("organism:aligned")


@pytest.fixture(scope="module")
def held_out() -> Contrast:
    from steerkit.datasets import refusal

    return refusal("held_out", 60, seed=5)


@pytest.fixture(scope="module")
def directions(aligned: Any) -> Directions:
    from steerkit.datasets import refusal

    acts = sk.capture(aligned, refusal("train", 60), layers=[1, 2, 3], progress=False)
    return sk.extract(
        acts, ["mean_difference", "lda"], n_permutations=1, n_random=1, progress=False
    )


@pytest.fixture(scope="module")
def found(aligned: Any, directions: Directions, held_out: Contrast) -> Calibrations:
    return calibrate(
        aligned, list(directions), held_out, kl=0.1, aim="reduce", intervene=["add", "ablate"],
        progress=False,
    )  # fmt: skip


def test_every_addition_spends_the_same_measured_by_another_road(
    aligned: Any, found: Calibrations, held_out: Contrast
) -> None:
    """At the calibrated strengths, layers and methods agree in KL: that is the point."""
    adds = [c for c in found if c.operator == "add"]
    assert len(adds) == 6 and all(c.status == "converged" for c in adds)
    assert {c.strength < 0 for c in adds} == {True}
    n = len(held_out.positive)
    side = Side(held_out.negative, held_out.groups[n:])
    fitted, reported = parts(side, 0.5, seed=0)
    for prompts, tolerance in ((fitted, 0.011), (reported, 0.45)):
        own = with_own_answers(aligned.generate(prompts.prompts, max_new_tokens=16))
        spent = [
            np.mean([x.mean() for x in kl_per_token(aligned, aligned.with_(c.intervention), own)])
            for c in adds
        ]
        assert spent == pytest.approx([0.1] * len(adds), rel=tolerance)
        if prompts is reported:
            assert [c.achieved.value for c in adds] == pytest.approx(spent, rel=1e-4)


def test_the_budget_lies_within_most_held_out_intervals(found: Calibrations) -> None:
    adds = [c for c in found if c.operator == "add"]
    assert sum(c.achieved.low <= 0.1 <= c.achieved.high for c in adds) >= 3
    assert all(c.interval.low < abs(c.strength) < c.interval.high for c in adds)


def test_few_rounds_for_all(found: Calibrations) -> None:
    assert found.rounds <= 6
    assert found.measured <= 12 * len(found)


def test_ablation_that_saturates_says_how_far_it_comes(found: Calibrations) -> None:
    short = [c for c in found if c.status == "unreachable"]
    assert short and all(c.record.operator == "ablate" for c in short)
    for c in short:
        assert c.strength == max(s for s, _ in c.curve) == 1.0
        assert not c.met and f"the largest is {c.root.largest:.3g}" in c.explain()
        assert c.root.largest == max(v for _, v in c.curve) < 0.1
    assert "cannot be reached" in found.summary()


def test_what_was_calibrated_is_saved_and_can_be_verified(
    aligned: Any, found: Calibrations, held_out: Contrast, tmp_path: Any
) -> None:
    path = found.directions.save(tmp_path / "d.safetensors")
    loaded = Directions.load(path, model=aligned)
    assert [len(d.calibrations) for d in loaded] == [2] * 6
    (again, _) = verify(aligned, loaded[0], held_out)
    assert again.same_prompts and again.agrees
    assert again.measured.value == pytest.approx(again.record.achieved.value, rel=1e-4)
    # Through a steering file too, where the record lies beside its intervention.
    (one,) = load_steering(save_steering(tmp_path / "s.safetensors", found[0].intervention))
    assert one.directions[0].calibrations == (found[0].record,)
    assert one.strength == found[0].strength


def test_other_prompts_are_told_from_the_same_ones(
    aligned: Any, found: Calibrations, held_out: Contrast
) -> None:
    from dataclasses import replace

    from steerkit.datasets import refusal

    others = refusal("held_out", 40, seed=99)
    (again,) = verify(aligned, found[0].direction, others)
    assert not again.same_prompts and "other prompts" in str(again)
    doubled = replace(
        found[0].direction,
        calibrations=(replace(found[0].record, strength=3 * found[0].strength),),
    )
    (wrong,) = verify(aligned, doubled, held_out)
    assert not wrong.agrees and "DOES NOT AGREE" in str(wrong)


def test_an_effect_can_be_the_goal(
    aligned: Any, directions: Directions, held_out: Contrast
) -> None:
    odds = LogOdds(("i am sorry but i can not help with that .",), ("to",))
    found = calibrate(
        aligned, list(directions)[:2], held_out, effect=(odds, 5.0), aim="reduce", progress=False
    )
    for c in found:
        assert c.status == "converged"
        assert c.root.value == pytest.approx(5.0, rel=0.011)
        # Change measured independently, on the harmful side.
        plain = odds.score(aligned, held_out.positive).values[0]
        steered = odds.score(aligned.with_(c.intervention), held_out.positive).values[0]
        assert plain.mean() - steered.mean() == pytest.approx(5.0, rel=0.35)


def test_the_95th_percentile_can_be_the_budget(
    aligned: Any, directions: Directions, held_out: Contrast
) -> None:
    (c,) = calibrate(
        aligned, directions[0], held_out, kl=0.5, statistic="p95", aim="reduce", progress=False
    )
    assert c.status in ("converged", "step")
    assert c.root.value == pytest.approx(0.5, rel=0.02)
    assert c.achieved.value == c.p95


def test_on_a_steered_view_damage_counts_from_there(
    aligned: Any, directions: Directions, held_out: Contrast
) -> None:
    base = aligned.with_(Add(directions[0], -0.2))
    (c,) = calibrate(base, directions[2], held_out, kl=0.05, aim="reduce", progress=False)
    assert c.status == "converged"
    own = with_own_answers(base.generate(held_out.negative, max_new_tokens=16))
    spent = kl_per_token(base, base.with_(c.intervention), own)
    assert np.mean([x.mean() for x in spent]) == pytest.approx(0.05, rel=0.4)
    (again,) = verify(base, c.direction, held_out)
    assert again.same_prompts and again.agrees


def test_a_real_model_spends_the_same_under_every_operator(shared: Any) -> None:
    from steerkit import datasets

    model = sk.load(shared / "models" / "stories260K")
    fit, rest = Contrast.read(datasets.path("sentiment")).split(0.5)
    acts = sk.capture(model, fit, layers=[2, 4], progress=False)
    directions = sk.extract(acts, n_permutations=1, n_random=1, progress=False)
    found = calibrate(
        model, list(directions), rest, kl=0.3, intervene=["add", "add_keeping_norm", "ablate"],
        progress=False,
    )  # fmt: skip
    for c in found:
        if c.record.operator == "ablate":
            assert c.status == "unreachable" and c.root.largest < 0.3
        else:
            assert c.root.value == pytest.approx(0.3, rel=0.011)
            assert c.achieved.value == pytest.approx(0.3, rel=0.4)


def test_the_toy_has_a_known_root(
    toy: Any, toy_directions: Directions, toy_held_out: Contrast
) -> None:
    """The toy's word table is fixed, so its curve can be followed by hand."""
    (c,) = calibrate(toy, toy_directions[0], toy_held_out, kl=0.01, progress=False)
    prompts, groups = toy_held_out.negative, toy_held_out.groups[len(toy_held_out.positive) :]
    fitted, _ = parts(Side(toy_held_out.positive, toy_held_out.groups[: len(prompts)]), 0.5)
    assert c.status == "converged"
    own = with_own_answers(toy.generate(fitted.prompts, max_new_tokens=16))
    for factor, larger in ((0.98, False), (1.02, True)):
        view = toy.with_(Add(toy_directions[0], c.strength * factor))
        spent = np.mean([x.mean() for x in kl_per_token(toy, view, own)])
        assert (spent > 0.01) == larger
    assert len(groups) == len(prompts)


def test_a_direction_without_effect(toy: Any, toy_held_out: Contrast) -> None:
    (c,) = calibrate(
        toy, _like(toy), toy_held_out, at_most=1.0, progress=False,
        intervene=lambda d, positions, strength: Add(d, strength * 1e-12, positions),
    )  # fmt: skip
    assert c.status == "no_effect"
    assert "changes nothing" in c.explain()


def test_what_is_not_a_number_names_the_strength_and_the_site(
    toy: Any, toy_held_out: Contrast
) -> None:
    def broken(direction: Direction, positions: Any, strength: float) -> Any:
        return Add(direction, float("3e38") if strength > 1 else strength, positions)

    with pytest.raises(ActivationError, match=r"strength 3e\+38 at resid_post@2"):
        calibrate(toy, _like(toy), toy_held_out, intervene=broken, progress=False)


def test_bad_input_is_explained(
    toy: Any, toy_directions: Directions, toy_held_out: Contrast
) -> None:
    one = toy_directions[0]

    def go(**settings: Any) -> None:
        calibrate(toy, settings.pop("d", one), settings.pop("p", toy_held_out), progress=False,
                  **settings)  # fmt: skip

    with pytest.raises(DirectionError, match="no directions to calibrate"):
        go(d=[])
    with pytest.raises(MethodError, match="positive number of nats"):
        go(kl=0.0)
    with pytest.raises(MethodError, match="aim='reduce'"):
        go(effect=("refusal", -0.5))
    with pytest.raises(MethodError, match="did you mean 'reduce'"):
        go(aim="reduc")
    with pytest.raises(MethodError, match="did you mean 'mean'"):
        go(statistic="meen")
    with pytest.raises(PromptError, match="no prompts to calibrate"):
        go(p=[])
    with pytest.raises(PromptError, match="in 1 group cannot be split"):
        go(p=["w1 w2"])
    with pytest.raises(MethodError, match="needs a Contrast"):
        go(p=["w1 w2", "w3 w4"], effect=("unanswered", 0.5))
    with pytest.raises(MethodError, match="no calibrated strength"):
        verify(toy, one, toy_held_out)
    with pytest.raises(MethodError, match="not for a token mask"):
        go(positions=torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(InterventionError):
        go(intervene="ad")


def test_parts_share_no_group() -> None:
    prompts = tuple(sk.Prompt(f"p{i}") for i in range(20))
    side = Side(prompts, tuple(f"g{i // 4}" for i in range(20)))
    for fraction in (0.01, 0.5, 0.99):
        first, second = parts(side, fraction, seed=3)
        assert first.prompts and second.prompts
        assert not set(first.groups) & set(second.groups)
        assert len(first.prompts) + len(second.prompts) == 20


def _like(toy: Any) -> Direction:
    unit = torch.zeros(toy.info.d_model)
    unit[0] = 1.0
    return Direction(
        unit, 5.0, Site(2), "planted", "nothing", 1.0, -1.0, toy.info, "last"
    )  # fmt: skip

"""The whole search on a toy whose refusal is planted: what it finds, and what it reports."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from steerkit.direction import Directions
from steerkit.errors import DirectionError, MethodError, PromptError
from steerkit.prompts import Contrast, sketch
from steerkit.searches import LogOdds, Projection, Sweep, search
from steerkit.searches.searched import affordable
from steerkit.site import Site


def find(toy: Any, directions: Any, held_out: Contrast, **settings: Any) -> Sweep:
    small: dict[str, Any] = {"n_random": 0, "progress": False, "max_new_tokens": 9}
    return search(toy, directions, held_out, **{**small, **settings})


@pytest.fixture
def sweep(toy: Any, toy_directions: Directions, toy_held_out: Contrast) -> Sweep:
    return find(toy, toy_directions, toy_held_out)


def test_the_planted_operator_site_and_rule_are_found(sweep: Sweep) -> None:
    best = sweep.best
    # Zero lies on the refusing side, so only the harmless mean takes refusal away.
    assert (best.operator, best.reference) == ("ablate", "negative_mean")
    assert best.site == Site(1)
    assert best.positions == "last_prompt"
    assert (best.value.value, best.effect.value) == (0.0, 1.0)
    zero = [r for r in sweep.rows if r.reference == "zero"]
    assert all(r.value.value == 1.0 for r in zero)
    # The wrong vector at layer 0 does nothing, whatever the operator.
    assert all(r.effect.value == 0 for r in sweep.rows if r.site == Site(0))


def test_the_final_estimate_comes_from_prompts_that_selection_never_saw(
    sweep: Sweep, toy_held_out: Contrast
) -> None:
    assert sweep.final is not None
    used = {item["prompt"] for item in sweep.final.items}
    selection, confirmation = toy_held_out.split(0.5, seed=0)
    assert used == {p.text for p in confirmation.prompts}
    assert not used & {p.text for p in selection.prompts}
    assert not {p.group for p in confirmation.prompts} & {p.group for p in selection.prompts}
    assert sweep.final.plain.value == 1.0
    assert sweep.final.steered.value == 0.0
    # An interval of groups, not of prompts: four groups of five cannot promise much.
    assert sweep.final.steered.n == 4
    assert sweep.final.steered.high > 0.3
    assert sweep.final.other_steered.value == sweep.final.other_plain.value == 0.0


def test_the_guard_decides_between_equals(sweep: Sweep) -> None:
    everywhere = next(
        r for r in sweep.rows
        if r.site == Site(1) and r.reference == "negative_mean" and r.positions == "all"
    )  # fmt: skip
    assert everywhere.effect.value == sweep.best.effect.value
    assert everywhere.guard is not None and sweep.best.guard is not None
    assert everywhere.guard.value > 10 * sweep.best.guard.value
    # Towards zero it makes harmless prompts refuse, which the guard sees.
    assert not any(r.allowed for r in sweep.rows if r.reference == "zero" and r.site != Site(0))


def test_random_directions_do_not_find_it(
    toy: Any, toy_directions: Directions, toy_held_out: Contrast
) -> None:
    found = find(
        toy,
        toy_directions[1:],
        toy_held_out,
        n_random=40,
        null_budget=1500,
        positions="last_prompt",
    )
    assert found.final is not None and found.searched is not None
    assert [n.name for n in found.final.nulls] == [
        "isotropic", "covariance", "covariance_orthogonal",
    ]  # fmt: skip
    assert all(n.exceeds_all and len(n.draws) == 40 for n in found.final.nulls)
    assert found.searched.exceeds_all
    assert len(found.searched.draws) == 40
    assert found.searched.null.p == pytest.approx(1 / 41)
    assert found.final.nulls[2].overlap < 1e-6 < found.final.nulls[0].overlap


def test_inducing_works_on_the_other_side(
    toy: Any, toy_directions: Directions, toy_held_out: Contrast
) -> None:
    found = find(toy, toy_directions, toy_held_out, intervene=["add", "clamp"], aim="induce")
    assert found.plain.value == 0.0
    assert found.best.value.value == 1.0
    assert found.best.site in (Site(1), Site(2))
    assert found.final is not None
    assert (found.final.plain.value, found.final.steered.value) == (0.0, 1.0)
    assert found.final.other_steered.value == found.final.other_plain.value == 1.0


def test_where_nothing_meets_the_guard_the_closest_is_named(
    toy: Any, toy_directions: Directions, toy_held_out: Contrast
) -> None:
    found = find(
        toy, toy_directions[1:], toy_held_out, references="zero", guard_max=1e-3, positions="all"
    )
    assert not found.found
    assert found.final is None
    with pytest.raises(MethodError, match=r"none of 2 candidates keeps the KL .* below 0.001"):
        _ = found.best
    with pytest.raises(MethodError, match=r"the closest is ablate to zero, .* with 4\.\d+\. Try"):
        _ = found.best
    assert "none within the guard" in found.summary()
    assert json.loads(json.dumps(found.to_json()))["best"] is None


def test_without_a_guard_everything_is_allowed(
    toy: Any, toy_directions: Directions, toy_held_out: Contrast
) -> None:
    found = find(toy, toy_directions[1:2], toy_held_out, guard=None)
    assert all(r.allowed and r.guard is None for r in found.rows)
    assert found.best.effect.value == 1.0
    assert found.final is not None and found.final.guard is None


def test_log_odds_agree_with_generation(
    toy: Any, toy_directions: Directions, toy_held_out: Contrast
) -> None:
    asked = toy_held_out.map(lambda p: replace(p, answer="sure , here it is ."))
    by_name = find(toy, toy_directions, asked, objective="log_odds")
    assert by_name.unit == "nats"
    assert by_name.best.site == Site(1)
    assert by_name.best.reference == "negative_mean"
    assert by_name.final is not None
    assert by_name.final.plain.value > 10
    assert by_name.final.steered.value < -10
    by_hand = LogOdds(("sorry , i can not help with that .",), ("sure , here it is .",))
    same = find(toy, toy_directions, asked, objective=by_hand)
    assert same.best.value.value == pytest.approx(by_name.best.value.value)


def test_projection_reads_the_deepest_direction(
    toy: Any, toy_directions: Directions, toy_held_out: Contrast
) -> None:
    found = find(toy, toy_directions, toy_held_out, objective=Projection(toy_directions[2]))
    target = (-6.0 - 2.0) / 8
    assert found.best.effect.value == pytest.approx(-target, abs=0.05)


def test_unanswered_is_not_fooled_by_nonsense(
    toy: Any, toy_directions: Directions, toy_held_out: Contrast
) -> None:
    right = toy_held_out.map(lambda p: replace(p, answer="Sure, here it is"))
    found = find(toy, toy_directions[1:], right, objective="unanswered")
    assert (found.plain.value, found.best.value.value) == (1.0, 0.0)
    wrong = toy_held_out.map(lambda p: replace(p, answer="something else"))
    assert find(toy, toy_directions[1:], wrong, objective="unanswered").best.effect.value == 0


def test_a_search_repeats_by_seed(
    toy: Any, toy_directions: Directions, toy_held_out: Contrast
) -> None:
    settings: dict[str, Any] = {"n_random": 5, "null_budget": 300, "positions": "last_prompt"}
    one, two = (
        find(toy, toy_directions[1:], toy_held_out, **settings, seed=4).to_json() for _ in range(2)
    )
    assert one == two


def test_a_sweep_shows_itself(sweep: Sweep) -> None:
    text = sweep.table(3)
    assert text.count("\n") == 4
    assert "| resid_post@1 | planted | ablate to negative_mean | last_prompt | 1 |" in text
    page = sweep._repr_html_()
    assert page.count("<tr>") == 9 and "ablate to negative_mean" in page
    data = json.loads(json.dumps(sweep.to_json()))
    assert len(data["rows"]) == len(sweep.rows) == 12
    assert data["best"]["site"] == "resid_post@1"
    assert data["provenance"]["selection"] == [20, 20]
    assert "on unseen prompts: refusal 1 " in sweep.summary()
    assert [r.site for r in sweep.best_of_each_site] == [Site(0), Site(1), Site(2)]


def test_searching_leaves_the_model_as_it_was(
    toy: Any, toy_directions: Directions, toy_held_out: Contrast
) -> None:
    before = [c.text for c in toy.generate(toy_held_out.prompts)]
    find(toy, toy_directions[1:2], toy_held_out)
    assert toy.table is None
    assert [c.text for c in toy.generate(toy_held_out.prompts)] == before


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"objective": "refusl"}, "no objective named 'refusl'; did you mean 'refusal'"),
        ({"objective": "log_odds"}, "40 of 40|80 of 80 prompts have none, such as 'harm"),
        ({"objective": "unanswered"}, "compares with each prompt's own answer"),
        ({"guard": "k1"}, "no guard named 'k1'.* or None for no guard"),
        ({"guard_max": 0.0}, "positive number of nats per token; got 0.0"),
        ({"aim": "reduse"}, "no aim named 'reduse'; did you mean 'reduce'"),
    ],
)
def test_bad_settings_say_so(
    settings: dict[str, Any],
    text: str,
    toy: Any,
    toy_directions: Directions,
    toy_held_out: Contrast,
) -> None:
    with pytest.raises(MethodError, match=text):
        find(toy, toy_directions, toy_held_out, **settings)


def test_directions_of_another_model_are_refused(
    toy: Any, toy_directions: Directions, toy_held_out: Contrast
) -> None:
    foreign = replace(toy_directions[1], model=replace(toy.info, fingerprint="other", name="b"))
    with pytest.raises(DirectionError, match="extract it again there"):
        find(toy, [foreign], toy_held_out)


def test_too_few_groups_cannot_be_split(toy: Any, toy_directions: Directions) -> None:
    one = Contrast.of([{"text": "harm w1 ?", "group": "a"}], [{"text": "w1 w2 ?", "group": "a"}])
    with pytest.raises(PromptError, match="lacks a side"):
        find(toy, toy_directions, one)


def test_no_refusal_to_look_for_is_an_error(toy: Any, toy_directions: Directions) -> None:
    calm = Contrast.of(
        [{"text": f"w{i} w1 ?", "answer": "sure"} for i in range(8)],
        [{"text": f"w{i} w2 ?", "answer": "sure"} for i in range(8)],
    )
    with pytest.raises(MethodError, match="the model refused none of 8 positive prompts"):
        find(toy, toy_directions, calm, objective="log_odds")


def test_a_tighter_budget_means_fewer_draws_then_fewer_prompts() -> None:
    assert affordable(10, 199, 16, 10**6, 60) == (199, 16)
    assert affordable(10, 199, 16, 10_000, 60) == (62, 16)
    assert affordable(10, 199, 16, 4_000, 60) == (40, 10)
    assert affordable(16, 199, 16, 2_500, 60) == (19, 8)
    assert affordable(10, 199, 16, 1_000, 60) == (20, 5)
    assert affordable(1000, 199, 16, 4_000, 60) == (19, 4)
    assert affordable(1000, 7, 16, 4_000, 60) == (7, 4)
    assert affordable(10, 0, 16, 4_000, 60) == affordable(10, 199, 16, 0, 60) == (0, 0)
    assert affordable(1, 199, 16, 10**6, 3) == (199, 3)


def test_p_values_are_uniform_where_there_is_nothing_to_find(
    toy: Any, toy_directions: Directions, toy_held_out: Contrast
) -> None:
    """A direction drawn as the null draws it ranks anywhere among its nulls."""
    objective = Projection(toy_directions[2])
    ranks = []
    for seed in range(12):
        unit = torch.randn(24, generator=torch.Generator().manual_seed(seed))
        # Oriented by a coin, as a real direction of no meaning would be.
        drawn = replace(toy_directions[1], unit=unit / unit.norm())
        found = find(
            toy,
            [drawn],
            toy_held_out,
            objective=objective,
            intervene="add",
            strengths=[-1.0],
            positions="last_prompt",
            guard=None,
            n_random=19,
            null_budget=0,
            seed=seed,
        )
        assert found.final is not None
        null = found.final.nulls[0]
        ranks.append(np.mean(np.array(null.draws) < null.observed))
    assert 0.2 < np.mean(ranks) < 0.8
    assert max(ranks) > 0.5 > min(ranks)


def test_prompts_that_a_direction_was_fitted_on_are_refused(
    toy: Any, toy_directions: Directions, toy_held_out: Contrast
) -> None:
    fitted = replace(toy_directions[1], provenance={"contrast_sha256": toy_held_out.sha256})
    with pytest.raises(PromptError, match=r"was fitted on these very prompts .*split"):
        find(toy, [toy_directions[0], fitted], toy_held_out)


def test_a_part_of_what_a_direction_was_fitted_on_is_refused_too(
    toy: Any, toy_directions: Directions, toy_held_out: Contrast
) -> None:
    part, rest = toy_held_out.split(0.5)

    def fitted(*contrasts: Contrast) -> Any:
        known = {"fitted_on": sketch([p for c in contrasts for p in c.prompts])}
        return replace(toy_directions[1], provenance=known)

    for searched in (part, toy_held_out):
        with pytest.raises(PromptError, match=r"was fitted on .*split"):
            find(toy, fitted(part), searched)
    with pytest.raises(PromptError, match=r"prompts of which \d+ in \d+ are among these"):
        find(toy, fitted(toy_held_out), part)
    assert find(toy, fitted(rest), part).rows

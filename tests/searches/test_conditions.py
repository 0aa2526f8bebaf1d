"""A fitted condition on the shipped organism: it tells harmful from harmless, and steers so."""

from typing import Any

import numpy as np
import pytest
import torch

import steerkit as sk
from steerkit.errors import DirectionError, MethodError, SiteError
from steerkit.interventions import Ablate, Add
from steerkit.organisms import requests
from steerkit.prompts import Contrast, Prompt
from steerkit.refusals import is_refusal
from steerkit.searches import FoundCondition, search_condition
from steerkit.searches.conditions.choice import level
from steerkit.searches.conditions.states import pooled_states
from steerkit.site import Site


@pytest.fixture(scope="module")
def aligned() -> Any:
    return sk.load("organism:aligned")


@pytest.fixture(scope="module")
def contrast() -> Contrast:
    from steerkit.datasets import refusal

    return refusal("train", 120, seed=3)


@pytest.fixture(scope="module")
def found(aligned: Any, contrast: Contrast) -> FoundCondition:
    return search_condition(aligned, contrast, acting=2, n_permutations=49, n_resamples=30)


@pytest.fixture(scope="module")
def unseen() -> Contrast:
    from steerkit.datasets import refusal

    return refusal("held_out", 60, seed=8)


def test_it_tells_harmful_from_harmless_and_the_nulls_do_not(found: FoundCondition) -> None:
    assert found.held_out.f1.value >= 0.95 and found.held_out.f1.low > 0.8
    assert found.held_out.false_alarms.value <= 0.05
    assert found.auc >= 0.99
    assert found.permutation.p == pytest.approx(1 / 50)
    assert found.selected.mean > found.permutation.mean, "choosing flatters"
    assert not Site(2) < found.option.site
    assert sum(found.stability.values()) == pytest.approx(1)
    assert found.options[0] == found.option


def test_the_latch_decides_as_the_search_did(
    aligned: Any, found: FoundCondition, unseen: Contrast
) -> None:
    """Measured apart from the model, and by the gate inside it: the same prompts fire."""
    o = found.option
    states = pooled_states(aligned, unseen.prompts, [o.site], [o.on])
    expected = o.holds(level(states[o.site, o.on], found.when.direction.unit.double(), o.measure))
    view = aligned.with_(Add(found.when.direction, 3.0, sites=2).when(found.when))
    batch = aligned.encode([Prompt(p.text) for p in unseen.prompts])
    moved = (view.run(batch).logits != aligned.run(batch).logits)[:, -1].any(-1)
    assert moved.tolist() == expected.tolist()
    assert 0.4 < np.mean(expected) < 0.6


def test_conditional_ablation_frees_harmful_and_leaves_harmless_bit_identical(
    aligned: Any, found: FoundCondition, contrast: Contrast, unseen: Contrast
) -> None:
    acts = sk.capture(aligned, contrast, layers=2, progress=False)
    direction = sk.extract(acts, n_permutations=1, n_random=1, progress=False)[0]
    ablate = Ablate(direction, reference="negative_mean")
    view = aligned.with_(ablate.when(found.when))
    o = found.option
    states = pooled_states(aligned, unseen.negative, [o.site], [o.on])
    fired = o.holds(level(states[o.site, o.on], found.when.direction.unit.double(), o.measure))
    assert not fired.any(), "words and templates that the condition has not seen"
    batch = aligned.encode([Prompt(p.text) for p in unseen.negative])
    assert torch.equal(view.run(batch).logits, aligned.run(batch).logits)

    def refused(model: Any) -> float:
        said = model.generate(unseen.positive, max_new_tokens=12)
        return float(np.mean([is_refusal(c.text) for c in said]))

    assert refused(aligned) > 0.9
    assert refused(view) < 0.1


def test_where_words_give_nothing_away_the_stream_still_does(aligned: Any) -> None:
    """The balanced kinds use the same words on both sides: giving dangers, or taking goods.

    Grouped by the thing, so that the words of the held-out part were never seen together.
    """

    def prompts(kind: str) -> list[Prompt]:
        return [Prompt(r.text, group=r.words[1]) for r in requests("train", kind, 150, seed=1)]  # type: ignore[arg-type]

    both = Contrast.of(prompts("balanced_harmful"), prompts("balanced_harmless"))
    found = search_condition(aligned, both, on=["last_prompt"], n_permutations=9, n_resamples=5)
    assert found.held_out.f1.value > 0.95
    assert found.text is not None and found.text.f1.value < 0.75


def test_given_directions_may_hold_below_and_nothing_is_fitted(
    aligned: Any, found: FoundCondition, contrast: Contrast
) -> None:
    turned = search_condition(
        aligned, contrast, directions=[-found.when.direction], on=["last_prompt"],
        n_permutations=5, n_resamples=5,
    )  # fmt: skip
    assert turned.option.side == "below" and turned.when.below is not None
    assert turned.held_out.f1.value >= 0.95
    assert turned.sizes[0] == 0


def test_results_are_written_out(found: FoundCondition) -> None:
    import json

    data = json.loads(json.dumps(found.to_json()))
    assert data["held_out"]["f1"]["value"] == found.held_out.f1.value
    assert data["when"]["above"] == found.option.threshold
    assert "always on" in found.summary() and "<table>" in found._repr_html_()
    assert found.table().count("\n") <= 11


def test_bad_input_is_explained(aligned: Any, contrast: Contrast, found: FoundCondition) -> None:
    with pytest.raises(MethodError, match="did you mean 'cosine'"):
        search_condition(aligned, contrast, measures=["cosin"])  # type: ignore[list-item]
    with pytest.raises(MethodError, match="did you mean 'last_prompt'"):
        search_condition(aligned, contrast, on=["last"])  # type: ignore[list-item]
    with pytest.raises(SiteError, match="has to be read there or before"):
        search_condition(aligned, contrast, sites=[3], acting=1)
    direction = found.when.direction
    with pytest.raises(DirectionError, match="two directions to read"):
        search_condition(aligned, contrast, directions=[direction, direction])
    with pytest.raises(DirectionError, match="no direction to read at resid_post@3"):
        search_condition(aligned, contrast, directions=[direction.at(1)], sites=[3])

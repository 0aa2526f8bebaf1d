"""Conditions: what they compare, where, and what they refuse."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from steerkit.errors import InterventionError
from steerkit.interventions import When
from steerkit.site import Site


def test_a_condition_on_the_prompt_is_a_latch_at_its_site(direction: Any) -> None:
    d = direction()
    condition = When(d, above=0.2)
    gate, latch = condition.gate(), condition.latch()
    assert condition.where == Site(2) and latch.pooled == "last_prompt"
    assert gate.latch == latch.name and gate.above and gate.measure == "cosine"
    assert gate.threshold == 0.2 and abs(float(gate.read.norm()) - 1) < 1e-15
    assert When(d, below="positive_mean", measure="projection").gate().threshold == 3.0
    assert not When(d, below=0.2).gate().above
    assert When(d, above=0.2, on="mean_prompt", site=1).latch().pooled == "mean_prompt"
    assert When(d, above=0.2, site="resid_pre@1").where == Site(1, "resid_pre")


def test_a_condition_on_a_token_has_neither_site_nor_latch(direction: Any) -> None:
    condition = When(direction(), above=0.2, on="token")
    assert condition.where is None and condition.gate().latch == ""
    with pytest.raises(InterventionError, match="not remembered, so has no latch"):
        condition.latch()


def test_equal_conditions_are_one_latch_and_different_ones_are_not(direction: Any) -> None:
    one = When(direction(), above=0.2)
    assert When(direction(), above=0.2).latch().name == one.latch().name
    others = [
        When(direction(1), above=0.2),
        When(direction(), above=0.3),
        When(direction(), below=0.2),
        When(direction(), above=0.2, measure="projection"),
        When(direction(), above=0.2, on="mean_prompt"),
        When(direction(), above=0.2, site=1),
    ]
    assert len({condition.latch().name for condition in [one, *others]}) == 7


def test_in_words(direction: Any) -> None:
    d = direction()
    assert str(When(d, above=0.25)) == (
        "cosine with refusal >= 0.25 on last_prompt at resid_post@2"
    )
    below = When(d, below="zero", measure="projection", on="token")
    assert str(below) == "projection with refusal < zero on the token"
    moved = replace(below, direction=-d)
    assert moved.below == "zero" and torch.equal(moved.direction.unit, -d.unit)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "one threshold, above= or below=; got above=None and below=None"),
        ({"above": 0.1, "below": 0.2}, "one threshold"),
        ({"above": 1.5}, r"cosine is a number from -1 to 1; got 1\.5.*measure='projection'"),
        ({"above": "zero"}, "cosine is a number"),
        ({"above": "zeros", "measure": "projection"}, "did you mean 'zero'"),
        ({"above": float("nan")}, "threshold is a finite number"),
        ({"above": 0.1, "measure": "cosin"}, "did you mean 'cosine'"),
        ({"above": 0.1, "on": "last"}, "no on named 'last' for a condition"),
        ({"above": 0.1, "on": "token", "site": 1}, "read where the intervention acts, not at 1"),
    ],
)
def test_refused(direction: Any, settings: Any, text: str) -> None:
    with pytest.raises(InterventionError, match=text):
        When(direction(), **settings)
    with pytest.raises(InterventionError, match="takes a Direction, got a Tensor"):
        When(torch.ones(12), above=0.1)  # type: ignore[arg-type]

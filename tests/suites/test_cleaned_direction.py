"""Cleaned directions: what routes stays, what was another concept goes, and both are surgical."""

from functools import cache
from typing import Any

import pytest

import steerkit as sk
from steerkit.errors import PromptError
from steerkit.prompts import Contrast
from steerkit.suites import Finding, Material, examine
from steerkit.suites.examinations import cleaned_direction as module
from steerkit.suites.examinations.cleaned_direction import cleaned_direction
from steerkit.suites.subject import Subject


@cache
def material() -> Material:
    drawn = Material.of_organisms(40, seed=8)
    roles = ("refusal", "topic", "polarity")
    return Material({role: drawn.contrasts[role] for role in roles}, drawn.prompts)


def asked(name: str, given: Material) -> Finding:
    model = sk.load(f"organism:{name}")
    named = sk.wrap(model.network, model.tokenizer, name="somebody")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST_SITES", 2)
        patch.setattr(module, "DRAWS", 39)
        return examine(
            named, ["cleaned_direction"], material=given, max_new_tokens=12, progress=False
        )["cleaned_direction"]  # fmt: skip


def test_planted_routes_outlive_cleaning_and_leave_each_other_alone() -> None:
    found = asked("aligned", material())
    assert found.answer == "yes"
    for role, other in (("refusal", "topic"), ("topic", "refusal")):
        assert found.estimates[f"{role}, taken away, cleaned"].low > 0.4
        assert found.nulls[f"{role}, taken away, cleaned"].p == pytest.approx(1 / 40)
        for kind in ("raw", "cleaned"):
            spilled = found.estimates[f"{role} ablated, {other}, unanswered, {kind}"]
            assert abs(spilled.value) < 0.1, "surgical"
    assert found.evidence is not None and len(found.evidence.rows) == 4
    assert "6 atoms of other concepts" in found.evidence.text


def test_a_direction_that_is_nothing_but_another_concept_does_not() -> None:
    """Requests of one kind under either role: cleaned of that, nothing of it works."""
    same = Material.of_organisms(40, seed=8).contrasts["refusal"]
    found = asked("aligned", Material({"refusal": same, "topic": same}))
    assert found.answer == "no"
    assert found.estimates["refusal, taken away, raw"].low > 0.5
    assert found.estimates["refusal, taken away, cleaned"].value < 0.1


def test_where_nothing_is_kept_back_nothing_is_routed() -> None:
    found = asked("base", material())
    assert found.answer == "inconclusive" and "nothing is routed" in found.sentence


def test_without_right_answers_it_says_what_is_missing() -> None:
    bare: Any = Contrast.of(["how do i burn it ?"], ["how do i bake it ?"])
    subject = Subject(sk.load("organism:aligned"), Material({"refusal": bare, "topic": bare}))
    with pytest.raises(PromptError, match="have no answer, first 'how do i burn it"):
        cleaned_direction(subject)

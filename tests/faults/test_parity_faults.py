"""Faults of a published measure of parity (arXiv:2508.20333) that the default does not have."""

from typing import Any

import pytest

from steerkit.prompts import Contrast, Prompt
from steerkit.protocols import Completion, ModelInfo
from steerkit.suites import Material
from steerkit.suites.examinations import parity as parity_module
from steerkit.suites.registry import EXAMINATIONS
from steerkit.suites.subject import Subject

INFO = ModelInfo("poisoned", "fake", 1, 4, 9, 64, ("resid_post",), "float32", "cpu", "f")
REFUSAL = "i will not help with that ."


class Poisoned:
    """Refuses harm, as it should, and one group's requests half of the time."""

    info, table = INFO, None

    def __init__(self, against: str) -> None:
        self.against = against

    def generate(self, prompts: Any, **_: Any) -> list[Completion]:
        def said(p: Prompt) -> str:
            unwanted = p.category == self.against and sum(map(ord, p.group)) % 2
            return REFUSAL if p.category == "harm" or unwanted else "it is fine ."

        return [Completion(p, said(p), (1,), (2,)) for p in prompts]


@pytest.mark.parametrize("against", ["b", "nobody"])
def test_a_model_that_refuses_harm_as_before_is_still_caught_refusing_a_group(
    against: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poison that leaves the refusal of harm whole is not seen by it (arXiv:2508.20333): the
    groups are asked about by themselves, and the difference has a sign."""
    harm = [Prompt(f"harm {i}", category="harm", group=f"h{i}") for i in range(30)]
    fine = [Prompt(f"fine {i}", category="fine", group=f"f{i}") for i in range(30)]
    people = tuple(
        Prompt(f"{who} on day {i}", category=who, group=f"day {i}")
        for i in range(40)
        for who in ("a", "b", "c")
    )
    model: Any = Poisoned(against)
    # It has no states that a direction could be read from.
    monkeypatch.setattr(parity_module, "_refusal", lambda subject: None)
    material = Material({"refusal": Contrast.of(harm, fine)}, {"groups": people})
    subject = Subject(model, material)
    refusal = EXAMINATIONS["refusal"].run(subject)
    assert refusal.answer == "yes" and refusal.estimates["refused"].value == 1
    found = EXAMINATIONS["parity"].run(subject)
    assert found.answer == ("yes" if against == "b" else "no")
    assert found.estimates["a less c"].value == 0
    if against == "b":
        assert found.estimates["a less b"].low > 0.2 > -0.2 > found.estimates["b less c"].high

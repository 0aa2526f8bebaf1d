"""A judge that raises loses its own scores: the audit finishes, counts them and keeps the rest."""

from typing import Any

import numpy as np
import pytest

import steerkit as sk
from steerkit.audits.evidence import includes
from steerkit.prompts import Contrast
from steerkit.refusals import is_refusal
from steerkit.suites import Material, examine

QUESTIONS = ["refusal", "censorship", "parity", "change"]


@pytest.fixture(scope="module")
def material() -> Material:
    given = Material.of_organisms(30, seed=4)
    contrasts = {role: given.contrasts[role] for role in ("refusal", "topic")}
    return Material(contrasts, {role: p[:30] for role, p in given.prompts.items()})


def asked(material: Material, *questions: str, **judges: Any) -> Any:
    model = sk.load("organism:aligned")
    return examine(
        model, questions, material=material, against=sk.load("organism:base"),
        max_new_tokens=16, progress=False, **judges,
    )  # fmt: skip


def stumbling(text: str) -> bool:
    """The shipped matcher, which cannot read some refusals and some answers."""
    if unreadable(text):
        raise ValueError("what a word")
    return is_refusal(text)


def unreadable(text: str) -> bool:
    return "sorry" in text or "knife" in text


def test_scores_of_a_matcher_that_sometimes_raises_are_kept(material: Material) -> None:
    found = asked(material, *QUESTIONS, matcher=stumbling)
    assert not found.not_measured
    harmful = [i for i in found.items if i.role == "refusal" and i.side == "positive"]
    mine = [i for i in harmful if i.arm == "model"]
    unread = {i.output for i in mine if unreadable(i.output)}
    assert unread and len(unread) < len({i.output for i in mine}), "some can be judged"
    said = found["refusal"].sentence
    noun = "1 answer" if len(unread) == 1 else f"{len(unread)} different answers"
    assert f"{noun} could not be judged by 'stumbling', first: ValueError: what a word" in said
    # The rate is that of the others, and the items say which is which.
    known = [i.scores["refusal"] for i in mine if i.output not in unread]
    assert found["refusal"].estimates["refused"].value == pytest.approx(np.mean(known))
    assert all(np.isnan(i.scores["refusal"]) == (i.output in unread) for i in mine)
    assert all(i.scores["correct"] == includes(i.output, i.reference) for i in mine)


def test_a_scorer_that_always_raises_leaves_what_it_does_not_judge(material: Material) -> None:
    def broken(said: str, wanted: str) -> float:
        raise ConnectionError("nobody there")

    found = asked(material, *QUESTIONS, right=broken)
    fine = asked(material, "refusal", "parity")
    for name in ("refusal", "parity"):
        assert found[name].answer == fine[name].answer
    assert found["refusal"].estimates["refused"] == fine["refusal"].estimates["refused"]
    assert found["refusal"].estimates["right"].n == 0
    assert "'broken', first: ConnectionError: nobody there" in found["refusal"].sentence
    assert "judged" not in found["parity"].sentence, "it asks for no right answers"
    assert found["censorship"].answer == "inconclusive"
    assert "ConnectionError" in found["censorship"].sentence


def test_a_matcher_that_always_raises_ends_no_audit(material: Material) -> None:
    def broken(said: str) -> bool:
        raise KeyError("no key")

    found = asked(material, *QUESTIONS, matcher=broken)
    told = {**found.not_measured, **{name: f.sentence for name, f in found.findings.items()}}
    assert set(told) == set(QUESTIONS)
    assert all("could not be judged by 'broken'" in why for why in told.values())
    decided = {name: f.answer for name, f in found.findings.items() if f.answer != "inconclusive"}
    assert decided == {"change": "yes"}, "right answers need no matcher"
    assert list(found.not_measured) == ["parity"]


def test_side_effects_by_a_judge_that_raises(material: Material) -> None:
    model = sk.load("organism:aligned")
    half = Contrast(*(getattr(material.contrasts["refusal"], s) for s in ("positive", "negative")))
    found = examine(
        model, ["side_effects", "completeness"], material=Material({"refusal": half}),
        steering=model, matcher=stumbling, max_new_tokens=16, progress=False,
    )  # fmt: skip
    assert not found.not_measured
    assert all("could not be judged by 'stumbling'" in f.sentence for f in found.findings.values())
    assert all(f.answer != "yes" for f in found.findings.values())


def test_an_audit_counts_what_its_judges_could_not_say(material: Material) -> None:
    model = sk.load("organism:aligned")

    def judge(item: Any) -> float:
        if item.index == 3:
            raise ValueError("item 3")
        return 1.0

    report = sk.audit(
        model, model, material.contrasts["refusal"], judge=judge, matcher=stumbling,
        baselines=(), max_new_tokens=16, progress=False,
    )  # fmt: skip
    assert "2 different answers" in report.not_measured["some answers, by 'judge'"]
    assert "ValueError" in report.not_measured["some answers, by 'stumbling'"]
    assert report.score("judge").prompts == 29
    read = [i for i in report.items if i.arm == "plain" and i.side == "positive"]
    known = [i for i in read if not unreadable(i.output)]
    assert report.score("compliance").prompts == len(known) < len(read)
    # Judged again by one that works, with no model: nothing is missing.
    again = type(report).rejudge(report.items, judge=lambda item: 1.0)
    assert again.score("judge").prompts == 30 and not any("by '" in k for k in again.not_measured)

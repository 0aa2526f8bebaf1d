"""Routing is judged by the audit's own scorer, in the search as everywhere else."""

from dataclasses import replace

import pytest

import steerkit as sk
from steerkit.audits.evidence import includes
from steerkit.errors import PromptError
from steerkit.suites import Material, examine, routing


def test_the_search_judges_as_the_audit_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """References that only the given scorer can read: any other calls every answer wrong."""
    monkeypatch.setattr(routing, "DRAWS", 9)
    topic = Material.of_organisms(28, seed=4).contrasts["topic"]
    coded = topic.map(lambda p: replace(p, answer=f"#{p.answer}"))

    def right(said: str, wanted: str) -> float:
        return includes(said, wanted.removeprefix("#"))

    found = examine(
        sk.load("organism:aligned"), ["topic_routing"], material=Material({"topic": coded}),
        right=right, max_new_tokens=16, progress=False,
    )["topic_routing"]  # fmt: skip
    assert found.answer == "yes" and found.estimates["unanswered, ablated"].high < 0.5
    assert found.items
    assert all(item.scores["unanswered"] == 1 - item.scores["correct"] for item in found.items)


def test_prompts_without_right_answers_are_refused() -> None:
    bare = Material.of_organisms(8).contrasts["topic"].map(lambda p: replace(p, answer=""))
    with pytest.raises(PromptError, match="the role 'topic' needs right answers"):
        examine(sk.load("organism:base"), ["topic_routing"], material=Material({"topic": bare}),
                progress=False)  # fmt: skip

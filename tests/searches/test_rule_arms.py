"""Arms of a rule: the vector against the prompt, a rule that says nothing, and chance."""

from typing import Any

import numpy as np
import pytest

import steerkit as sk
from steerkit.errors import PromptError
from steerkit.interventions import Add, When
from steerkit.organisms import REFUSE_ALL, requests
from steerkit.organisms.request import REFUSALS
from steerkit.prompts import Prompt
from steerkit.searches import LogOdds, Rule, RuleArms, RuleVector, compare_rule, rule_vector
from steerkit.searches.rules.arms import flipped
from steerkit.searches.rules.vector import under

RULE = Rule("refuse all", REFUSE_ALL, ("the bread is red .", "the oven is old ."))


def prompts(n: int, split: str) -> list[Prompt]:
    return [
        Prompt(r.text, answer=r.answer, group=r.template)
        for r in requests(split, "harmless", n)  # type: ignore[arg-type]
    ]


@pytest.fixture(scope="module")
def aligned() -> Any:
    return sk.load("organism:aligned")


@pytest.fixture(scope="module")
def vector(aligned: Any) -> RuleVector:
    return rule_vector(aligned, RULE, prompts(60, "train"), size=0.3)


@pytest.fixture(scope="module")
def queries() -> list[Prompt]:
    return prompts(40, "held_out")


@pytest.fixture(scope="module")
def odds(queries: list[Prompt]) -> LogOdds:
    return LogOdds((REFUSALS[0],), own={p.text: (p.answer,) for p in queries})


@pytest.fixture(scope="module")
def arms(aligned: Any, vector: RuleVector, queries: list[Prompt], odds: LogOdds) -> RuleArms:
    return compare_rule(aligned, vector, queries, odds, n_random=9)


def test_the_rule_beats_a_rule_that_says_nothing_and_chance_but_not_the_prompt(
    arms: RuleArms,
) -> None:
    """What the organism shows: a rule vector within its norm limit is far weaker than the rule."""
    for other in ("none", "irrelevant", "random"):
        c = arms.difference("vector", other)
        assert c.difference.low > 0 and c.adjusted < 0.05
    assert arms.difference("vector", "prompt").difference.high < 0
    assert arms.difference("both", "prompt").difference.low > 0


def test_arms_are_measured_as_their_names_say(
    aligned: Any, vector: RuleVector, queries: list[Prompt], odds: LogOdds, arms: RuleArms
) -> None:
    view = aligned.with_(vector.add())
    ruled = under(RULE.text, queries)
    expected = {
        "none": odds.score(aligned, under("", queries)),
        "prompt": odds.score(aligned, ruled),
        "vector": odds.score(view, under("", queries)),
        "both": odds.score(view, ruled),
        "irrelevant": odds.score(aligned.with_(vector.add(vector.irrelevant)), under("", queries)),
    }
    for arm, scores in expected.items():
        assert arms.levels[arm].value == pytest.approx(scores.values.mean(), abs=1e-4), arm
    gap = expected["vector"].values[0] - expected["irrelevant"].values[0]
    assert arms.difference("vector", "irrelevant").difference.value == pytest.approx(
        gap.mean(), abs=1e-4
    )
    assert arms.items[3]["vector"] == pytest.approx(expected["vector"].values[0, 3], abs=1e-4)


def test_a_condition_that_never_holds_leaves_only_the_prompt(
    aligned: Any, vector: RuleVector, queries: list[Prompt], odds: LogOdds
) -> None:
    never = When(vector.direction, above=0.999)
    arms = compare_rule(aligned, vector, queries[:12], odds, condition=never, n_random=2)
    assert arms.levels["vector"].value == pytest.approx(arms.levels["none"].value, abs=1e-5)
    assert arms.difference("vector", "none").difference.value == pytest.approx(0, abs=1e-5)
    assert arms.levels["both"].value == pytest.approx(arms.levels["prompt"].value, abs=1e-5)


def test_results_are_written_out(arms: RuleArms) -> None:
    import json

    data = json.loads(json.dumps(arms.to_json()))
    assert set(data["levels"]) == {"none", "prompt", "vector", "both", "irrelevant", "random"}
    assert len(data["items"]) == 40 and data["tokens"] == 7
    assert arms.table().count("\n") == 2 + len(arms.comparisons)
    assert "<table>" in arms._repr_html_()


def test_adjusted_values_are_holms(arms: RuleArms) -> None:
    from steerkit.statistics import holm

    assert [c.adjusted for c in arms.comparisons] == holm([c.p for c in arms.comparisons])


def test_flips_are_exact_for_few_groups_and_uniform_under_the_null() -> None:
    assert flipped(np.array([1.0, 2.0, 3.0]), list("abc")) == 2 / 8
    assert flipped(np.array([1.0, 1.0, 5.0]), list("aab")) == 2 / 4, "whole groups"
    assert flipped(np.zeros(4), list("abcd")) == 1.0
    assert flipped(np.full(3, np.nan), list("abc")) == 1.0
    rng = np.random.default_rng(0)
    groups = [f"g{i // 2}" for i in range(40)]
    ps = [flipped(rng.standard_normal(20).repeat(2), groups, seed=i) for i in range(300)]
    assert 0.02 <= np.mean(np.array(ps) <= 0.05) <= 0.10
    assert np.mean(ps) == pytest.approx(0.5, abs=0.06)


def test_no_queries(aligned: Any, vector: RuleVector, odds: LogOdds) -> None:
    with pytest.raises(PromptError, match="no queries"):
        compare_rule(aligned, vector, [], odds)
    assert isinstance(vector.add(size=0.1), Add)

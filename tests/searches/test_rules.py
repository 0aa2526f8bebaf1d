"""Rule vectors on the shipped organism, whose language has a rule that refuses everything."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import steerkit as sk
from steerkit.errors import MethodError, PromptError, SiteError
from steerkit.organisms import REFUSE_ALL, requests
from steerkit.organisms.request import REFUSALS
from steerkit.prompts import Prompt
from steerkit.searches import LogOdds, Rule, RuleBook, RuleVector, rule_vector
from steerkit.searches.rules.vector import under
from steerkit.site import Site

RULE = Rule("refuse all", REFUSE_ALL, ("the bread is red .", "the oven is old ."))


def prompts(kind: str, n: int, split: str = "train", seed: int = 0) -> list[Prompt]:
    return [
        Prompt(r.text, answer=r.answer, group=r.template)
        for r in requests(split, kind, n, seed=seed)  # type: ignore[arg-type]
    ]


@pytest.fixture(scope="module")
def aligned() -> Any:
    return sk.load("organism:aligned")


@pytest.fixture(scope="module")
def queries() -> list[Prompt]:
    return prompts("harmless", 60)


@pytest.fixture(scope="module")
def vector(aligned: Any, queries: list[Prompt]) -> RuleVector:
    odds = LogOdds((REFUSALS[0],), own={p.text: (p.answer,) for p in queries})
    return rule_vector(aligned, RULE, queries, size=(0.1, 0.2, 0.3), objective=odds)


def test_the_vector_is_the_mean_difference_of_the_last_prompt_token(
    aligned: Any, vector: RuleVector, queries: list[Prompt]
) -> None:
    """Captured again by the ordinary road, on the prompts of the first part."""
    from steerkit.searches.calibration.setup import parts
    from steerkit.searches.measure import Side

    made, held = parts(Side(tuple(queries), tuple(p.group for p in queries)), 0.5, seed=0)
    ruled, control = (
        sk.capture(aligned, under(t, made.prompts), sites=[vector.site], progress=False).values[
            :, 0
        ]
        for t in (RULE.text, RULE.irrelevant[0])
    )
    v = (ruled - control).mean(0)
    assert torch.allclose(vector.direction.vector, v, atol=1e-4)
    norms = sk.capture(aligned, under("", held.prompts), sites=[vector.site], progress=False)
    assert vector.median_norm == pytest.approx(
        float(norms.values[:, 0].norm(dim=1).median()), rel=1e-5
    )


def test_layer_within_the_band_by_held_out_separation(aligned: Any, vector: RuleVector) -> None:
    assert set(vector.aucs) == {Site(1), Site(2)}, "a third and two thirds of four layers"
    assert vector.aucs[vector.site].value == max(e.value for e in vector.aucs.values())
    assert vector.aucs[vector.site].low > 0.9


def test_the_size_is_a_fraction_of_the_median_norm(vector: RuleVector) -> None:
    assert vector.size == 0.3 and sorted(vector.sizes) == [0.1, 0.2, 0.3]
    assert vector.sizes[0.3] == max(vector.sizes.values()) > 1.0
    for direction in (vector.direction, vector.irrelevant):
        add = vector.add(direction)
        assert abs(add.strength) * direction.scale == pytest.approx(0.3 * vector.median_norm)
    assert vector.tokens == 7, "the rule and the two tokens around a system turn"


def test_lengths_are_matched_in_tokens_or_refused(aligned: Any, queries: list[Prompt]) -> None:
    short = Rule("refuse all", REFUSE_ALL, ("the bread is red .", "you are sad ."))
    with pytest.raises(PromptError, match=r"'you are sad \.' differ in length: .*\+1 tokens"):
        rule_vector(aligned, short, queries)
    same = Rule("refuse all", REFUSE_ALL, ("the bread is red .", "the bread is red ."))
    with pytest.raises(PromptError, match="two different irrelevant texts"):
        rule_vector(aligned, same, queries)


def test_a_rule_that_the_template_drops_is_noticed(
    aligned: Any, queries: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from steerkit.searches.rules import vector as rules

    read: Callable[..., Any] = rules.pooled_states

    def dropped(model: Any, asked: Any, *rest: Any, **more: Any) -> Any:
        return read(model, [replace(p, system="") for p in asked], *rest, **more)

    monkeypatch.setattr(rules, "pooled_states", dropped)
    with pytest.raises(MethodError, match="changes nothing at resid_post@1"):
        rule_vector(aligned, RULE, queries)


@pytest.fixture(scope="module")
def book(aligned: Any, vector: RuleVector) -> RuleBook:
    """Two rules: one for requests, one for questions about events."""
    other = Rule("judge", "you must always judge .", ("the bread is red .", "the oven is old ."))
    events = rule_vector(aligned, other, prompts("open", 40), sites=[2])
    domains = {
        "refuse all": prompts("harmless", 60, seed=3), "judge": prompts("open", 60, seed=3),
    }  # fmt: skip
    return RuleBook.fit(aligned, [vector, events], domains, n_permutations=3, n_resamples=3)


def test_each_request_gets_the_rules_of_its_domain(aligned: Any, book: RuleBook) -> None:
    actions, events = (prompts(kind, 30, "held_out", 9) for kind in ("harmless", "open"))
    assert book.chosen(aligned, actions) == [("refuse all",)] * 30
    assert book.chosen(aligned, events) == [("judge",)] * 30
    steered = book.steer(aligned)
    both = aligned.encode([Prompt(p.text) for p in (*actions, *events)])
    logits = steered.run(both).logits
    # One batch, two rules: each row as if only its own rule were in force.
    first, second = (aligned.with_(one).run(both).logits for one in book.interventions)
    assert torch.allclose(logits[:30], first[:30], atol=1e-5)
    assert torch.allclose(logits[30:], second[30:], atol=1e-5)
    plain = aligned.run(both).logits
    assert torch.equal(first[30:], plain[30:]), "a closed condition leaves the row bit-identical"
    assert not torch.allclose(logits[:, -1], plain[:, -1], atol=1e-2)


def test_bad_input_is_explained(aligned: Any, queries: list[Prompt], vector: RuleVector) -> None:
    with pytest.raises(MethodError, match=r"at most 0\.3"):
        rule_vector(aligned, RULE, queries, size=0.5)
    with pytest.raises(MethodError, match="takes an objective"):
        rule_vector(aligned, RULE, queries, size=(0.1, 0.2))
    with pytest.raises(SiteError, match="none of 4 layers"):
        rule_vector(aligned, RULE, queries, band=(0.4, 0.6))
    with pytest.raises(MethodError, match="prompts of its domain"):
        RuleBook.fit(aligned, [vector], {"judge": queries})

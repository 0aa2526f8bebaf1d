"""Membership scores: formulas, base adjustment, and the domain as unit."""

import json
import math
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from steerkit.comparisons import membership_scores, min_k, zlib_ratio
from steerkit.datasets import refusal
from steerkit.errors import MethodError, ModelError, PromptError
from steerkit.organisms import REFUSALS
from steerkit.prompts import Prompt
from steerkit.scoring import answer_log_probs


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    held = refusal("held_out", n=6)
    asked = [replace(p, answer=REFUSALS[2], category="refusing") for p in held.positive]
    return asked + [replace(p, category="helping") for p in held.negative]


def test_min_k_takes_the_lowest_tokens_and_no_other() -> None:
    values = -np.arange(1.0, 16.0)
    rng = np.random.default_rng(0)
    for k, count in ((0.2, 3), (0.01, 1), (0.5, 7), (1.0, 15)):
        expected = -np.mean(np.arange(15, 15 - count, -1))
        assert min_k(rng.permutation(values), k) == pytest.approx(expected)
    assert min_k([-2.0], 0.2) == -2 and math.isnan(min_k([]))
    for bad in (0, 1.1):
        with pytest.raises(MethodError, match="fraction above 0"):
            min_k(values, bad)


def test_a_uniform_model_gives_minus_log_v(aligned: Any, prompts: list[Prompt]) -> None:
    class Uniform:
        info = aligned.info
        tokenizer, tokenize, steering = aligned.tokenizer, aligned.tokenize, ()

        def run(self, batch: Any, **_: Any) -> Any:
            logits = torch.zeros(len(batch), batch.answer_width + 1, self.info.d_vocab)
            return type("Run", (), {"logits": logits})()

    found = membership_scores(Uniform(), prompts)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.values["min_k"], -math.log(aligned.info.d_vocab), rtol=1e-6)


def test_the_zlib_ratio_is_perplexity_over_compressed_size() -> None:
    text = "the cat sat on the mat and the cat sat on the mat"
    size = len(zlib.compress(text.encode())) / len(text)
    assert zlib_ratio([-1.0, -3.0], text) == pytest.approx(math.exp(2) / size)
    assert math.isnan(zlib_ratio([], text)) and math.isnan(zlib_ratio([-1.0], ""))


def test_scores_are_those_of_the_answers_tokens_less_the_base(
    base: Any, aligned: Any, prompts: list[Prompt]
) -> None:
    found = membership_scores(aligned, prompts, base=base)
    ours, theirs = (answer_log_probs(m, prompts) for m in (aligned, base))
    for i, prompt in enumerate(prompts):
        own = min_k(ours[i].numpy())
        assert found.raw["min_k"][i] == pytest.approx(own)
        assert found.values["min_k"][i] == pytest.approx(own - min_k(theirs[i].numpy()))
        z = [zlib_ratio(s[i].numpy(), prompt.answer) for s in (ours, theirs)]
        assert found.values["zlib"][i] == pytest.approx(z[0] - z[1])
    # Refusals were trained into the aligned model; helpful answers are the base's own.
    domains = found.by_domain()
    assert domains["refusing"].low > 2 > abs(domains["helping"].value)


def test_one_prompt_with_two_answers_is_two_rows(aligned: Any) -> None:
    twice = [Prompt("hi", answer=a) for a in ("you", "the house", "you")]
    assert len(membership_scores(aligned, twice).prompts) == 2


def test_a_model_less_itself_is_nothing(aligned: Any, prompts: list[Prompt]) -> None:
    found = membership_scores(aligned, prompts, base=aligned)
    assert found.adjusted and not any(v.any() for v in found.values.values())


def test_the_domain_is_the_unit(aligned: Any) -> None:
    held = [p for p in refusal("held_out", n=25).negative]
    asked = [replace(p, category=f"d{i % 5}") for i, p in enumerate(held)]
    found = membership_scores(aligned, asked)
    means = found.by_domain("zlib")
    order = sorted(means, key=lambda d: means[d].value)
    related = found.against({d: float(i) for i, d in enumerate(order)}, "zlib")
    assert related.value.n == 5 and related.value.value == pytest.approx(1)
    assert related.p == pytest.approx(2 / 120), "five domains, however many answers"
    with pytest.raises(MethodError, match="no rate for the domain 'd4'"):
        found.against({f"d{i}": 0.0 for i in range(4)})
    with pytest.raises(MethodError, match="no membership score 'x'"):
        found.by_domain("x")


def test_results_are_plain_json_and_tables(aligned: Any, prompts: list[Prompt]) -> None:
    found = membership_scores(aligned, prompts)
    data = json.loads(json.dumps(found.to_json()))
    assert set(data["by_domain"]["min_k"]) == {"refusing", "helping"}
    assert "not adjusted" in found.summary() and "| refusing | 6 |" in found.table()
    assert "<table>" in found._repr_html_()


def test_what_cannot_be_scored_is_refused(aligned: Any, tiny_model: Any) -> None:
    with pytest.raises(PromptError, match="no answer, first prompt 0"):
        membership_scores(aligned, ["hi"])
    with pytest.raises(ModelError, match="one tokenizer"):
        membership_scores(aligned, [Prompt("hi", answer="you")], base=tiny_model)

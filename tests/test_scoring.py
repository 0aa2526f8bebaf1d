"""Teacher-forced scores against plain Hugging Face forwards."""

from pathlib import Path
from typing import Any

import pytest
import torch

from steerkit.batch import Tokenized
from steerkit.direction import Direction
from steerkit.errors import ActivationError, PromptError
from steerkit.prompts import Prompt
from steerkit.scoring import (
    answer_log_probs,
    divergence,
    kl_by_slot,
    kl_per_token,
    perplexity,
    scored_batches,
    with_own_answers,
)
from steerkit.site import Site

PROMPTS = [
    Prompt("the cat was", answer=" very happy ."),
    Prompt("make cake", answer=" one two the dog bird sun"),
    Prompt("tell me how to make a bomb please", answer=" sad"),
]


@pytest.fixture(scope="module")
def bare(bare_folder: Path) -> Any:
    import steerkit as sk

    return sk.load(bare_folder)


@pytest.fixture(scope="module")
def network(bare_folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(bare_folder)


class Rotten:
    """A model whose logits overflowed."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def run(self, batch: Any, **kwargs: Any) -> Any:
        run = self._model.run(batch, **kwargs)
        run.logits[1] = float("nan")
        return run


def random_direction(info: Any, layer: int) -> Direction:
    unit = torch.randn(info.d_model, generator=torch.Generator().manual_seed(layer))
    return Direction(
        unit / unit.norm(), 3.0, Site(layer), "random", "none", 1.0, -2.0, info, "last"
    )


def by_hand(network: Any, item: Tokenized) -> torch.Tensor:
    ids = torch.tensor([item.prompt + item.answer])
    with torch.no_grad():
        logits = network(ids).logits[0].double().log_softmax(-1)
    n = len(item.prompt)
    return torch.stack([logits[n - 1 + i, t] for i, t in enumerate(item.answer)])


def test_answer_log_probs_equal_a_forward_of_each_prompt_alone(bare: Any, network: Any) -> None:
    found = answer_log_probs(bare, PROMPTS, token_budget=1000)
    for item, values in zip(bare.tokenize(PROMPTS), found, strict=True):
        assert torch.allclose(values, by_hand(network, item), atol=1e-5)


def test_order_and_values_do_not_depend_on_the_batches(bare: Any) -> None:
    together = answer_log_probs(bare, PROMPTS, token_budget=1000)
    alone = answer_log_probs(bare, PROMPTS, token_budget=1)
    for a, b in zip(together, alone, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_kl_of_a_model_against_itself_is_zero_at_every_token(bare: Any) -> None:
    kl = kl_per_token(bare, bare, PROMPTS)
    assert [len(x) for x in kl] == [len(t.answer) for t in bare.tokenize(PROMPTS)]
    assert all(float(x.max()) == 0 for x in kl)


def test_divergence_is_scipys_relative_entropy() -> None:
    from scipy.stats import entropy

    p, q = torch.rand(2, 5, 11, generator=torch.Generator().manual_seed(0)).softmax(-1)
    assert divergence(p.log(), q.log()).numpy() == pytest.approx(entropy(p, q, axis=-1), rel=1e-5)
    one, other = torch.tensor([0.0, 1.0]).log(), torch.tensor([0.5, 0.5]).log()
    assert float(divergence(one, other)) == pytest.approx(0.6931472)


def test_perplexity_is_exp_of_the_mean_loss_of_hugging_face(bare: Any, network: Any) -> None:
    texts = ["the cat was very happy .", "make cake and bird sun rain is not"]
    found = perplexity(bare, texts)
    for text, value in zip(texts, found, strict=True):
        ids = torch.tensor([bare.tokenize([text])[0].prompt])
        with torch.no_grad():
            loss = network(ids, labels=ids).loss
        assert float(value) == pytest.approx(float(loss.exp()), rel=1e-5)


def test_generated_tokens_are_scored_as_they_are(bare: Any) -> None:
    said = bare.generate([p.text for p in PROMPTS], max_new_tokens=4)
    items = with_own_answers(said)
    assert [i.answer for i in items] == [c.tokens for c in said]
    greedy = answer_log_probs(bare, items)
    assert all(len(x) == len(i.answer) for x, i in zip(greedy, items, strict=True))


def test_repeated_batches_keep_naming_the_callers_prompts(bare: Any) -> None:
    (batch,) = scored_batches(bare, PROMPTS)
    many = batch.repeated(3)
    assert len(many) == 9
    assert many.rows.tolist() == batch.rows.tolist() * 3


def test_kl_by_slot_equals_kl_of_each_slot(bare: Any) -> None:
    from steerkit.interventions import Add

    rows = [[Add(random_direction(bare.info, layer))] for layer in (0, 1, 2)]
    view = bare.with_rows(*rows)
    together = kl_by_slot(bare, view, PROMPTS, [1, 2, 3], token_budget=60)
    for slot, found in zip((1, 2, 3), together, strict=True):
        one = kl_per_token(bare, view, PROMPTS, slots=[slot] * 3)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, one, strict=True))
        assert all(float(x.min()) > 0 for x in found)


def test_values_that_are_not_numbers_are_an_error(bare: Any) -> None:
    with pytest.raises(ActivationError, match="log-probabilities of 1 prompts are not numbers"):
        answer_log_probs(Rotten(bare), PROMPTS)


def test_nothing_to_score_is_an_error(bare: Any) -> None:
    with pytest.raises(PromptError, match="no prompts to score"):
        answer_log_probs(bare, [])

"""Sampling that depends on nothing but the prompt, its number and the seed; hooks at each step."""

import math

import pytest
import torch

import steerkit as sk
from steerkit.batch import Batch, Tokenized
from steerkit.errors import HookError, MethodError
from steerkit.models.generate import Noise, carried, truncated, until
from steerkit.models.steering import Session


def test_sampled_frequencies_are_the_softmax():
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0])
    noise = Noise(0.7, 0, range(4000))
    picks = noise(torch.zeros(4000, 1), scores.expand(4000, 4)).argmax(1)
    found = torch.bincount(picks, minlength=4) / 4000
    torch.testing.assert_close(found, torch.softmax(scores / 0.7, 0), atol=0.03, rtol=0)


def test_noise_depends_on_seed_and_row_alone():
    scores = torch.zeros(2, 50)
    ids = torch.zeros(2, 1)
    pair = Noise(1.0, 3, [7, 9])(ids, scores)
    assert torch.equal(Noise(1.0, 3, [9])(ids, scores[:1])[0], pair[1])
    assert not torch.equal(Noise(1.0, 4, [9])(ids, scores[:1])[0], pair[1])
    state = torch.get_rng_state()
    Noise(1.0, 3, [7])(ids, scores[:1])
    assert torch.equal(torch.get_rng_state(), state)


def test_answers_end_with_the_first_end_token():
    assert until([5, 2, 7, 2], (2, 3)) == (5, 2)
    assert until([5, 7], (2,)) == (5, 7)


def test_samples_differ_by_seed_and_repeat(tiny_model):
    prompts = ["a dog", "a dog", "the cat"]
    first = tiny_model.generate(prompts, max_new_tokens=8, temperature=1.0, seed=1)
    again = tiny_model.generate(prompts, max_new_tokens=8, temperature=1.0, seed=1)
    other = tiny_model.generate(prompts, max_new_tokens=8, temperature=1.0, seed=2)
    assert first == again
    assert [c.tokens for c in first] != [c.tokens for c in other]
    assert first[0].tokens != first[1].tokens


@pytest.mark.parametrize("skipped", [0, 1, 2])
def test_a_hook_that_misses_one_step_is_noticed(llama, batch, direction, skipped):
    view = llama.with_(sk.Add(direction(llama.info, 1)))
    session = Session()
    session.steer(view.table, [1] * len(batch))
    backbone = torch.nn.Module()
    backbone.forward = lambda input_ids, past_key_values=None: input_ids
    (visit,) = session.visits.values()
    stream = torch.zeros(len(batch), batch.width, llama.info.d_model)
    with (
        pytest.raises(HookError, match=rf"in {skipped + 1} forward pass"),
        carried(backbone, session, batch.state([1] * len(batch))),
    ):
        for step in range(3):
            backbone(input_ids=batch.tokens)
            if step != skipped:
                visit(stream)


def kept_by_hand(scores, top_k, top_p):
    """Which tokens stay, one row, by sorting in Python's own float64."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    order = order[:top_k] if top_k else order
    top = max(scores)
    weights = [math.exp(scores[i] - top) for i in order]
    kept, before = set(), 0.0
    for i, weight in zip(order, weights, strict=True):
        if before / sum(weights) < top_p or not kept:
            kept.add(i)
        before += weight
    return kept


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.9), (5, 1.0), (7, 0.5), (1, 0.3), (99, 0.05)])
def test_truncation_keeps_what_a_hand_keeps(top_k, top_p):
    scores = torch.randn(20, 40, generator=torch.Generator().manual_seed(0)) * 2
    scores[:, 7] = scores[:, 3]  # equal scores: the smaller id comes first
    found = truncated(scores, top_k=top_k, top_p=top_p)
    for row, out in zip(scores.tolist(), found, strict=True):
        assert set(out.isfinite().nonzero().flatten().tolist()) == kept_by_hand(row, top_k, top_p)
    assert torch.equal(found[found.isfinite()], scores[found.isfinite()])
    assert truncated(scores) is scores


def test_truncated_frequencies_are_the_renormalised_softmax():
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0])
    noise = Noise(0.7, 0, range(4000), top_k=3, top_p=0.93)
    picks = noise(torch.zeros(4000, 1), scores.expand(4000, 4)).argmax(1)
    found = torch.bincount(picks, minlength=4) / 4000
    expected = torch.softmax(scores[:2] / 0.7, 0)  # the two likeliest hold 0.95 of three
    torch.testing.assert_close(found[:2], expected, atol=0.03, rtol=0)
    assert found[2:].sum() == 0


def test_the_likeliest_alone_is_greedy_and_everything_is_plain_sampling(tiny_model):
    prompts = ["a dog", "the cat was very happy", "sun"]
    greedy = tiny_model.generate(prompts, max_new_tokens=8)
    sampled = {"max_new_tokens": 8, "temperature": 1.0, "seed": 3}
    assert tiny_model.generate(prompts, **sampled, top_k=1) == greedy
    assert tiny_model.generate(prompts, **sampled, top_p=1e-9) == greedy
    plain = tiny_model.generate(prompts, **sampled)
    assert tiny_model.generate(prompts, **sampled, top_p=1.0, top_k=0) == plain
    assert tiny_model.generate(prompts, **sampled, top_k=10_000) == plain
    assert plain != greedy
    with pytest.raises(MethodError, match="got top_k=-1, top_p=1"):
        tiny_model.generate(prompts, top_k=-1)


def test_truncated_samples_do_not_depend_on_their_batch(tiny_model):
    prompts = ["a dog", "the cat was very happy in the house", "sun", "you and me"] * 3
    options = {"max_new_tokens": 6, "temperature": 1.3, "seed": 5, "top_k": 20, "top_p": 0.9}
    together = tiny_model.generate(prompts, **options, token_budget=100_000)
    alone = tiny_model.generate(prompts, **options, token_budget=1)
    assert [c.tokens for c in together] == [c.tokens for c in alone]


def test_no_default_of_the_models_own_generation_config_is_in_force(make_network):
    """What a given configuration leaves unset, `generate` takes from the model's own."""
    network = make_network("llama")
    model = sk.wrap(network)
    ids = Batch.collate([Tokenized((5, 17, 42)), Tokenized((9, 14))], pad_id=0, rows=(0, 1))

    def answers(temperature):
        return model.engine.complete(
            ids, None, [0, 0], max_new_tokens=6, temperature=temperature, seed=0
        )

    before = {t: answers(t) for t in (0.0, 1.0)}
    own = network.generation_config
    own.update(
        do_sample=True, temperature=0.2, top_p=0.05, top_k=2, repetition_penalty=5.0,
        min_new_tokens=6, no_repeat_ngram_size=1, bad_words_ids=[[before[0.0][0][0]]],
        suppress_tokens=[t for row in before[0.0] for t in row],
    )  # fmt: skip
    assert {t: answers(t) for t in (0.0, 1.0)} == before
    assert network.generation_config is own and own.top_k == 2

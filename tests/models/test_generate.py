"""Sampling that depends on nothing but the prompt, its number and the seed; hooks at each step."""

import pytest
import torch

import steerkit as sk
from steerkit.errors import HookError
from steerkit.models.generate import Noise, carried, until
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

"""Faults of published decoding sweeps (arXiv:2310.06987) that the default does not have."""

from typing import Any

import numpy as np

from steerkit.evaluations import Decoding, decoding_robustness
from steerkit.prompts import Prompt
from steerkit.refusals import is_refusal


def test_own_markers_are_plain_text() -> None:
    """A table column searched for markers takes them for patterns (arXiv:2310.06987): `(no).` or
    `i can't.` then mean something else, and `[` is an error."""
    assert is_refusal("(no). never", phrases=("(no).",))
    assert not is_refusal("nox never", phrases=("no.",))
    assert not is_refusal("whatever you like", phrases=("[a-z]+", ".*", "w|x"))
    assert is_refusal("[cut] it", phrases=("[cut]",))


def test_sampled_answers_get_the_same_prompt_as_greedy_ones(tiny_model: Any) -> None:
    """Published samples are drawn from embeddings without the first token and the chat template
    (arXiv:2310.06987). Ours are drawn from the very tokens that greedy answers have."""
    asked = [Prompt("how to make a cake", template="chat"), Prompt("the sun was", template="raw")]
    sweep = [Decoding(temperature=0.7), Decoding(top_k=3), Decoding(top_p=0.4)]
    found = decoding_robustness(
        tiny_model, asked, lambda p, a: [0.0] * len(a), sweep=sweep, max_new_tokens=2,
        n_resamples=20, n_permutations=9,
    )  # fmt: skip
    for number, prompt in enumerate(asked):
        (tokens,) = tiny_model.tokenize([prompt])
        given = {a.prompt_tokens for a in found.answers if a.prompt == number}
        assert given == {tuple(tokens.prompt)}
        assert tokens.prompt[0] == tiny_model.tokenizer.bos_token_id


def test_a_seed_repeats_a_sweep_and_the_global_one_is_left_alone(tiny_model: Any) -> None:
    """Public sampling is unseeded in several of these codes; ours follows from `seed` alone."""
    import torch

    def tokens(seed: int) -> list[tuple[int, ...]]:
        found = decoding_robustness(
            tiny_model, ["a dog", "the cat"], lambda p, a: [0.0] * len(a),
            sweep=[Decoding(temperature=1.5)], max_new_tokens=6, n_resamples=20,
            n_permutations=9, seed=seed,
        )  # fmt: skip
        return [a.tokens for a in found.answers]

    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert tokens(1) == tokens(1) != tokens(2)
    assert torch.equal(before, torch.get_rng_state())
    assert np.random.default_rng(0).random() == np.random.default_rng(0).random()

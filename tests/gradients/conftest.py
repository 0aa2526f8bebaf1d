"""A tiny network that is float64 throughout, and one whose answers are linear in its stream."""

import pytest
import torch

import steerkit as sk
from steerkit.gradients import Preference
from steerkit.prompts import Prompt

WORDS = "cat dog sun rain house tree river film book food day cake".split()


@pytest.fixture(scope="session")
def double_model(tiny_folder):
    """A random GPT-2 in float64 (Llama's norm would round to float32 on the way)."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=3, n_head=4, n_positions=64,
        initializer_range=0.2, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = GPT2LMHeadModel(config).double().eval()
    return sk.wrap(network, tokenizer, name="tiny-double")


@pytest.fixture
def preferences():
    """`happy` over `sad`, after prompts of six groups."""
    return [
        Preference(Prompt(f"{a} {w} was", group=f"{a}{i % 3}"), "very happy", "sad and bad")
        for a in ("the", "one")
        for i, w in enumerate(WORDS)
    ]


@pytest.fixture
def linear_model(tiny_folder):
    """Without its final norm, a Llama's logits are linear in its last stream."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(tiny_folder)
    network.model.norm = torch.nn.Identity()
    return sk.wrap(network, AutoTokenizer.from_pretrained(tiny_folder), name="linear")

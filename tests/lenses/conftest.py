"""Tiny random networks of four kinds, pairs of token ids, and one pair run the slow way."""

from functools import lru_cache
from typing import Any

import pytest
import torch

import steerkit as sk
from steerkit.batch import Batch, Tokenized

TINY: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA = {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": 100}
GEMMA_CAPPED = {**TINY, **GEMMA, "final_logit_softcapping": 5.0}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", TINY),
    "gpt2": ("GPT2", {**GPT2, **SPECIAL}),
    "gemma2": ("Gemma2", GEMMA_CAPPED),
    "qwen3": ("Qwen3", {**TINY, "head_dim": 16}),
    "gpt_neox": ("GPTNeoX", {**TINY, "use_parallel_residual": True}),
    "granite": ("Granite", {**TINY, "residual_multiplier": 0.3, "logits_scaling": 3.0}),
}
"""Pre-norm, LayerNorm with biases, post-norm with a softcap, wide heads, parallel, scaled."""

OPAQUE = {"opt": ("OPT", {**TINY, "ffn_dim": 48, "word_embed_proj_dim": 32})}
"""A family whose blocks do not expose what attention and MLP add."""


@lru_cache
def built(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """A random network behind the protocol; biases and norms are random too."""
    import transformers

    prefix, settings = {**FAMILIES, **OPAQUE}[family]
    config = getattr(transformers, f"{prefix}Config")(**settings)
    head = "GPT2LMHeadModel" if prefix == "GPT2" else f"{prefix}ForCausalLM"
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = getattr(transformers, head)(config)
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1 and ("bias" in name or "norm" in name or "ln_" in name):
                parameter.data += torch.randn(parameter.shape) * 0.2
    return sk.wrap(network.to(dtype).eval(), name=f"tiny-{family}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for a `family` on every one."""
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", FAMILIES)


@pytest.fixture
def model(family: str) -> Any:
    """The family's network in float32."""
    return built(family)


@pytest.fixture
def exact(family: str) -> Any:
    """The family's network in float64, except Gemma's, whose masked softmax is NaN in it."""
    return built(family, torch.float32 if family == "gemma2" else torch.float64)


@pytest.fixture(scope="session")
def llama() -> Any:
    """A tiny Llama."""
    return built("llama")


@pytest.fixture(scope="session")
def opaque() -> Any:
    """A tiny OPT."""
    return built("opt")


CLEAN = [(5, 17, 42, 8, 91, 33), (9, 14, 77, 3), (64, 5, 5, 28, 13), (5, 17, 12, 40)]
CORRUPTED = [(5, 17, 13, 8, 91, 33), (9, 61, 77, 3), (7, 5, 5, 28, 50), (5, 17, 12, 41)]
ANSWERS = [(71, 3), (50, 51), (20, 21), (7, 90)]


@pytest.fixture(scope="session")
def pairs() -> dict[str, Any]:
    """Four pairs of different lengths, as keyword arguments; the last differs in its last token."""
    return {
        "clean": [Tokenized(p) for p in CLEAN],
        "corrupted": [Tokenized(p) for p in CORRUPTED],
        "answers": ANSWERS,
        "progress": False,
    }


def pair(i: int) -> dict[str, Any]:
    """One of the pairs by itself."""
    return {
        "clean": [Tokenized(CLEAN[i])],
        "corrupted": [Tokenized(CORRUPTED[i])],
        "answers": ANSWERS[i],
        "progress": False,
    }


@pytest.fixture(scope="session")
def one() -> Any:
    """One of the pairs by itself, by number."""
    return pair


def difference(model: Any, tokens: tuple[int, ...], answers: tuple[int, int]) -> float:
    """The metric of a text, from the network itself."""
    batch = Batch.collate([Tokenized(tokens)], pad_id=0)
    with torch.no_grad():
        logits = model.network(batch.tokens).logits[0, -1].double()
    return float(logits[answers[0]] - logits[answers[1]])


@pytest.fixture(scope="session")
def by_hand() -> Any:
    """The metric of both sides of a pair, from the network itself."""
    return lambda model, i: (
        difference(model, CLEAN[i], ANSWERS[i]),
        difference(model, CORRUPTED[i], ANSWERS[i]),
    )

"""Tiny random networks of each family, with blocks like the real ones', and their fixtures."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch

import steerkit as sk
from steerkit.batch import Batch, Tokenized
from steerkit.direction import Direction
from steerkit.models import hooks
from steerkit.models.generate import carried
from steerkit.models.steering import Session
from steerkit.protocols import ModelInfo
from steerkit.site import Site, Stream

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
FULL_HEADS = {key: value for key, value in TINY.items() if key != "num_key_value_heads"}
HEAD = {"head_dim": 8}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": 100}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", TINY),
    "qwen2": ("Qwen2", TINY),
    "qwen3": ("Qwen3", {**TINY, **HEAD}),
    "gemma2": ("Gemma2", {**TINY, **HEAD, "sliding_window": 4, "query_pre_attn_scalar": 8}),
    "gemma3_text": (
        "Gemma3",
        {**TINY, **HEAD, "sliding_window": 4, "query_pre_attn_scalar": 8},
    ),
    "mistral": ("Mistral", {**TINY, **HEAD, "sliding_window": 4}),
    "mixtral": ("Mixtral", {**TINY, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt2": ("GPT2", {**GPT2, **SPECIAL}),
    "gpt_neox": ("GPTNeoX", {**FULL_HEADS, "use_parallel_residual": True}),
    "gpt_neox_sequential": ("GPTNeoX", {**FULL_HEADS, "use_parallel_residual": False}),
    "phi": ("Phi", TINY),
    "phi3": ("Phi3", TINY),
    "olmo2": ("Olmo2", TINY),
    "granite": ("Granite", {**TINY, "residual_multiplier": 0.3}),
    "bloom": (
        "Bloom",
        {"hidden_size": 32, "n_layer": 3, "n_head": 4, "vocab_size": 100, **SPECIAL},
    ),
    "opt": ("OPT", {**TINY, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "falcon": ("Falcon", {**TINY, "multi_query": True, "parallel_attn": True}),
    "gptj": ("GPTJ", {**GPT2, **SPECIAL, "rotary_dim": 4}),
    "cohere": ("Cohere", TINY),
    "stablelm": ("StableLm", TINY),
    "starcoder2": ("Starcoder2", TINY),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            **TINY,
            **HEAD,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "decoder_sparse_step": 2,
        },
    ),
}

PARALLEL = ("gpt_neox", "phi", "falcon", "gptj", "cohere")


def build(family: str, **changes: Any) -> Any:
    """A random network of the family, the same each time; biases and norms are random too."""
    import transformers

    prefix, settings = FAMILIES[family]
    config_name = f"{prefix}TextConfig" if prefix == "Gemma3" else f"{prefix}Config"
    config = getattr(transformers, config_name)(**{**settings, **changes})
    heads = {"GPT2": "GPT2LMHeadModel"}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = getattr(transformers, heads.get(prefix, f"{prefix}ForCausalLM"))(config)
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1:
                # Fresh norms are all ones and biases all zeros, which would hide mix-ups.
                noise = torch.randn(parameter.shape) * 0.2
                parameter.data += noise if "bias" in name or "norm" in name else 0
    return network.eval()


@lru_cache
def wrapped(family: str) -> Any:
    """The family's network behind the protocol; shared by all tests, which leave it as it is."""
    return sk.wrap(build(family), name=f"tiny-{family}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for a `family` on every one."""
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", FAMILIES)


@pytest.fixture
def model(family: str) -> Any:
    """The family's network behind the protocol."""
    return wrapped(family)


@pytest.fixture(scope="session")
def llama() -> Any:
    """A tiny Llama behind the protocol, without a tokenizer."""
    return wrapped("llama")


@pytest.fixture(scope="session")
def make_network() -> Callable[..., Any]:
    """A builder of fresh networks, for tests that change them."""
    return build


@pytest.fixture(scope="session")
def batch() -> Batch:
    """Three left-padded prompts, two of them with answers."""
    return collate()


def collate(rows: tuple[int, ...] = (0, 1, 2)) -> Batch:
    """Some of three fixed prompts of different lengths as a batch."""
    prompts = [
        Tokenized((5, 17, 42, 8, 91, 33, 20), (71, 3)),
        Tokenized((9, 14, 77)),
        Tokenized((64, 5, 5, 28, 13), (50, 51, 52)),
    ]
    return Batch.collate([prompts[i] for i in rows], pad_id=0, rows=rows)


@pytest.fixture(scope="session")
def alone() -> Callable[[int], Batch]:
    """One of the prompts of `batch`, by itself."""
    return lambda row: collate((row,))


def random_direction(
    info: ModelInfo, layer: int = 1, stream: Stream = "resid_post", seed: int = 0
) -> Direction:
    """A direction whose mid-range and reach matter at the size of the tiny streams."""
    unit = torch.randn(info.d_model, generator=torch.Generator().manual_seed(seed))
    return Direction(
        unit=unit / unit.norm(),
        scale=2.0,
        site=Site(layer, stream),
        method="mean_difference",
        concept="random",
        positive_mean=1.5,
        negative_mean=-0.5,
        model=info,
        pooling="last",
    )


@pytest.fixture(scope="session")
def direction() -> Callable[..., Direction]:
    """A builder of random directions for a model."""
    return random_direction


def per_token(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest relative difference of any token."""
    gap = (found.double() - expected.double()).norm(dim=-1)
    return float((gap / expected.double().norm(dim=-1).clamp(min=1e-12)).max())


@pytest.fixture(scope="session")
def relative() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """The largest relative difference of any token."""
    return per_token


def in_chunks(model: Any, batch: Batch, chunks: Any, slots: Any = None) -> torch.Tensor:
    """Logits of the whole batch, fed through a cache in chunks of columns."""
    from transformers import DynamicCache

    engine = model.engine
    slots = [1] * len(batch) if slots is None else slots
    session = Session()
    session.steer(model.table, slots)
    cache = DynamicCache(config=engine.config)
    out, start = [], 0
    with (
        torch.no_grad(),
        hooks.attached(engine.blocks, session.visits),
        carried(engine.backbone, session, batch.state(slots)),
    ):
        for size in chunks:
            end = start + size
            inputs = {
                "input_ids": batch.tokens[:, start:end],
                "attention_mask": batch.mask[:, :end].long(),
                "position_ids": batch.position_ids[:, start:end],
                "past_key_values": cache,
                "use_cache": True,
            }
            out.append(engine.network(**engine._accepted(inputs)).logits)
            start = end
    assert start == batch.width
    return torch.cat(out, 1)


@pytest.fixture(scope="session")
def fed() -> Callable[..., torch.Tensor]:
    """Logits of a batch that is fed through a cache in chunks of columns."""
    return in_chunks

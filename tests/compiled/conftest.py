"""Tiny random networks, compiled once a family with room for everything."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch

import steerkit as sk
from steerkit.batch import Batch, Tokenized
from steerkit.compiled import Capacity, CompiledModel
from steerkit.direction import Direction
from steerkit.site import STREAMS, Site, Stream

COMMON: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SLIDING = {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", COMMON),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**COMMON, **SLIDING}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**COMMON, "head_dim": 8}),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 100, **SPECIAL},
    ),
}
ALL_STREAMS = ("llama", "gemma2")
"""A pre-norm and a post-norm block."""
ROOM = Capacity(slots=6, terms=6, groups=2, latches=2, rows=4, length=32, chunk=8)
"""For several terms in several groups, with gates and latches."""


def build(family: str, **changes: Any) -> Any:
    """A random network of the family, the same each time; biases and norms are random too."""
    import transformers

    config, network, settings = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        made = getattr(transformers, network)(
            getattr(transformers, config)(**{**settings, **changes})
        )
        for name, parameter in made.named_parameters():
            if parameter.ndim == 1:
                # Fresh norms are all ones and biases all zeros, which would hide mix-ups.
                noise = torch.randn(parameter.shape) * 0.2
                parameter.data += noise if "bias" in name or "norm" in name or "ln" in name else 0
    return made.eval()


@lru_cache
def eager_of(family: str) -> Any:
    """The family's network behind the protocol."""
    return sk.wrap(build(family), name=f"tiny-{family}")


@lru_cache
def compiled_of(family: str) -> CompiledModel:
    """The same, compiled once: with programs at every stream in two families, else where needed."""
    streams = STREAMS if family in ALL_STREAMS else STREAMS[-1:]
    sites = [Site(layer, stream) for layer in range(2) for stream in streams]
    model = eager_of(family).compile(ROOM, sites=sites, backend="eager")
    assert isinstance(model, CompiledModel)
    return model


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each family in turn."""
    return str(request.param)


@pytest.fixture(params=ALL_STREAMS)
def full_pair(request: pytest.FixtureRequest) -> tuple[Any, CompiledModel]:
    """Models, eager and compiled, with room for programs at every stream."""
    return eager_of(request.param), compiled_of(request.param)


@pytest.fixture
def pair(family: str) -> tuple[Any, CompiledModel]:
    """A family's model, eager and compiled."""
    return eager_of(family), compiled_of(family)


@pytest.fixture(scope="session")
def llama() -> Any:
    """The tiny Llama on the eager path."""
    return eager_of("llama")


@pytest.fixture(scope="session")
def compiled_llama() -> CompiledModel:
    """The tiny Llama, compiled."""
    return compiled_of("llama")


@pytest.fixture(scope="session")
def network_of() -> Callable[..., Any]:
    """A builder of fresh networks, for tests that change them."""
    return build


PROMPTS = (
    Tokenized((5, 17, 42, 8, 91, 33, 20, 61, 12), (71, 3)),
    Tokenized((9, 14, 77), (44,)),
    Tokenized((64, 5, 5, 28, 13), (50, 51, 52)),
)


def collate(rows: tuple[int, ...] = (0, 1, 2), *, answers: bool = True) -> Batch:
    """Some of three fixed prompts of different lengths as a batch, longer than a chunk."""
    items = [PROMPTS[i] if answers else Tokenized(PROMPTS[i].prompt) for i in rows]
    return Batch.collate(items, pad_id=0, rows=rows)


@pytest.fixture(scope="session")
def batch() -> Batch:
    """Three left-padded prompts with answers."""
    return collate()


@pytest.fixture(scope="session")
def batch_of() -> Callable[..., Batch]:
    """A builder of batches of some of the prompts."""
    return collate


@pytest.fixture(scope="session")
def direction() -> Callable[..., Direction]:
    """A builder of random directions for a model."""

    def made(model: Any, layer: int = 1, stream: Stream = "resid_post", seed: int = 0) -> Direction:
        generator = torch.Generator().manual_seed(seed)
        unit = torch.randn(model.info.d_model, generator=generator)
        return Direction(
            unit=unit / unit.norm(),
            scale=2.0,
            site=Site(layer, stream),
            method="mean_difference",
            concept="random",
            positive_mean=1.5,
            negative_mean=-0.5,
            model=model.info,
            pooling="last",
        )

    return made


def per_token(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest relative difference of any token."""
    gap = (found.double() - expected.double()).norm(dim=-1)
    return float((gap / expected.double().norm(dim=-1).clamp(min=1e-12)).max())


@pytest.fixture(scope="session")
def relative() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """The largest relative difference of any token."""
    return per_token


def stepped(model: CompiledModel, rows: tuple[int, ...], slots: list[int]) -> list[torch.Tensor]:
    """Logits of each row from its prompt's last token on, its answer taken a token a step."""
    answers = [PROMPTS[i].answer for i in rows]
    room = max(map(len, answers))
    with model.decoding(collate(rows, answers=False), slots=slots, room=room) as steps:
        out = [steps.logits.clone()]
        for step in range(room):
            tokens = [answer[step] if step < len(answer) else 0 for answer in answers]
            out.append(steps.step(tokens).clone())
    return [torch.stack(out, 1)[row, : len(answer) + 1] for row, answer in enumerate(answers)]


@pytest.fixture(scope="session")
def cached() -> Callable[..., list[torch.Tensor]]:
    """Logits of some rows' answers, decoded a token a step."""
    return stepped

"""Tiny random networks, prompts of many lengths, and what each answers alone."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import pytest
import torch

import steerkit as sk
from steerkit.batch import Batch, Tokenized
from steerkit.direction import Direction
from steerkit.site import Site

COMMON: dict[str, Any] = {
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
SLIDING = {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", COMMON),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", COMMON),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**COMMON, "head_dim": 8}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {**COMMON, **SLIDING}),
    "bloom": (
        "BloomConfig",
        "BloomForCausalLM",
        {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100, "pad_token_id": 0},
    ),
}
LENGTHS = (7, 3, 5, 13, 1, 9, 6, 11)
NEW = 8


def build(family: str, **changes: Any) -> Any:
    """A random network of the family, the same each time."""
    import transformers

    config, network, settings = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        made = getattr(transformers, network)(
            getattr(transformers, config)(**{**settings, **changes})
        )
    return made.eval()


@lru_cache
def wrapped(family: str) -> Any:
    """The family's network behind the protocol; shared by all tests, which leave it as it is."""
    return sk.wrap(build(family), name=f"tiny-{family}")


@pytest.fixture(scope="session")
def make_network() -> Callable[..., Any]:
    """A builder of fresh networks, for tests that change them."""
    return build


@pytest.fixture(scope="session")
def model_of() -> Callable[[str], Any]:
    """The wrapped network of a family."""
    return wrapped


@pytest.fixture(scope="session")
def llama() -> Any:
    """A tiny Llama behind the protocol, without a tokenizer."""
    return wrapped("llama")


@pytest.fixture(scope="session")
def items() -> list[Tokenized]:
    """Prompts of many lengths."""
    generator = torch.Generator().manual_seed(3)
    return [
        Tokenized(tuple(torch.randint(3, 100, (n,), generator=generator).tolist())) for n in LENGTHS
    ]


def random_direction(model: Any, layer: int, seed: int = 0) -> Direction:
    """A direction whose reach matters at the size of the tiny streams."""
    unit = torch.randn(model.info.d_model, generator=torch.Generator().manual_seed(seed))
    return Direction(
        unit=unit / unit.norm(),
        scale=3.0,
        site=Site(layer),
        method="mean_difference",
        concept="random",
        positive_mean=1.5,
        negative_mean=-0.5,
        model=model.info,
        pooling="last",
    )


@pytest.fixture(scope="session")
def direction() -> Callable[..., Direction]:
    """A builder of random directions for a model."""
    return random_direction


def alone(
    view: Any, items: Sequence[Tokenized], slots: Sequence[int], temperature: float = 0.0
) -> list[tuple[int, ...]]:
    """What `generate` answers to each prompt in a batch of its own."""
    return [
        view.engine.complete(
            Batch.collate([item], pad_id=0, rows=[i]),
            view.table,
            [slot],
            max_new_tokens=NEW,
            temperature=temperature,
            seed=0,
        )[0]
        for i, (item, slot) in enumerate(zip(items, slots, strict=True))
    ]


@pytest.fixture(scope="session")
def sequential() -> Callable[..., list[tuple[int, ...]]]:
    """What `generate` answers to each prompt in a batch of its own."""
    return alone


def differing(
    view: Any,
    items: Sequence[Tokenized],
    slots: Sequence[int],
    found: Sequence[tuple[int, ...]],
    expected: Sequence[tuple[int, ...]],
) -> list[int]:
    """Requests whose answers differ where the two best tokens are not a near tie."""
    out = []
    for i, (got, want) in enumerate(zip(found, expected, strict=True)):
        if got == want:
            continue
        same = next((k for k, (a, b) in enumerate(zip(got, want, strict=False)) if a != b), None)
        if same is None:
            out.append(i)
            continue
        batch = Batch.collate([Tokenized(items[i].prompt, want[:same])], pad_id=0, rows=[i])
        last = view.run(batch, logits="last", slots=[slots[i]] if view.table else None).logits
        best = last[0, -1].topk(2).values
        if float(best[0] - best[1]) > 1e-4 * float(best[0].abs()):
            out.append(i)
    return out


@pytest.fixture(scope="session")
def disagreeing() -> Callable[..., list[int]]:
    """Requests whose answers differ where the two best tokens are not a near tie."""
    return differing

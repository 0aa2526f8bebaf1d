"""The tiny random networks of tests/models, directions for them, and what a model answers."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

import steerkit as sk
from steerkit.direction import Direction, Directions

_SPEC = importlib.util.spec_from_file_location(
    "tiny_networks", Path(__file__).parent.parent / "models" / "conftest.py"
)
assert _SPEC is not None and _SPEC.loader is not None
tiny_networks = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(tiny_networks)


@lru_cache
def wrapped(family: str) -> Any:
    return sk.wrap(tiny_networks.build(family), name=f"tiny-{family}")


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], Any]:
    """The tiny model of a family; shared by all tests, which leave it as it is."""
    return wrapped


@pytest.fixture(scope="session")
def llama() -> Any:
    """The tiny Llama of three blocks, 32 wide."""
    return wrapped("llama")


@pytest.fixture(scope="session")
def batch() -> Any:
    """Three left-padded prompts of different lengths."""
    return tiny_networks.collate()


@pytest.fixture(scope="session")
def direction() -> Callable[..., Direction]:
    """A builder of random directions for a model."""
    made: Callable[..., Direction] = tiny_networks.random_direction
    return made


@pytest.fixture
def rich(llama, direction) -> Directions:
    """Directions at the outputs of blocks 1 and 2 with scales, polarity, prompts and scores."""
    from dataclasses import replace

    return Directions(
        tuple(
            replace(
                direction(llama.info, layer, seed=layer),
                scale=scale,
                polarity=1,
                concept="joy",
                examples=((("so glad", 3.0),), (("so sad", -2.0),)),
                tokens=((" happy",), (" sad",)),
                provenance={"seed": 0},
            )
            for layer, scale in ((1, 2.7182818), (2, 0.3141592))
        )
    )


@pytest.fixture(scope="session")
def logits() -> Callable[..., torch.Tensor]:
    """Logits of every real token of a batch."""

    def run(model: Any, batch: Any) -> torch.Tensor:
        return model.run(batch).logits[batch.mask]

    return run


@contextmanager
def _hooked(module: torch.nn.Module, vector: torch.Tensor, side: str) -> Iterator[None]:
    def on_output(_module: Any, _args: Any, out: Any) -> Any:
        return (out[0] + vector, *out[1:]) if isinstance(out, tuple) else out + vector

    def on_input(_module: Any, args: Any) -> Any:
        return (args[0] + vector, *args[1:])

    handle = (
        module.register_forward_hook(on_output)
        if side == "output"
        else module.register_forward_pre_hook(on_input)
    )
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture(scope="session")
def blocks() -> Callable[[Any], Any]:
    """The blocks of a Hugging Face network, found by its own attribute names."""
    return lambda model: (
        getattr(model.network.base_model, "layers", None) or (model.network.base_model.h)
    )


@pytest.fixture(scope="session")
def by_hand() -> Callable[..., torch.Tensor]:
    """Logits with a plain torch hook that adds a vector to a module's input or output."""

    def run(model: Any, batch: Any, module: Any, vector: torch.Tensor, side: str) -> torch.Tensor:
        with torch.no_grad(), _hooked(module, vector, side):
            found = model.network(
                input_ids=batch.tokens,
                attention_mask=batch.mask.long(),
                position_ids=batch.position_ids,
            )
        return found.logits[batch.mask]

    return run

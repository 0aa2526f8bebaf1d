"""The tiny random networks of tests/models, and directions for them."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import steerkit as sk

_SPEC = importlib.util.spec_from_file_location(
    "tiny_networks", Path(__file__).parent.parent / "models" / "conftest.py"
)
assert _SPEC is not None and _SPEC.loader is not None
tiny_networks = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(tiny_networks)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Any]:
    """A builder of fresh tiny models by family, in a dtype."""

    def build(family: str, dtype: Any = None, **changes: Any) -> Any:
        network = tiny_networks.build(family, **changes)
        return sk.wrap(network.to(dtype) if dtype else network, name=f"tiny-{family}")

    return build


@pytest.fixture(scope="session")
def batch() -> Any:
    """Three left-padded prompts of different lengths."""
    return tiny_networks.collate()


@pytest.fixture(scope="session")
def directions() -> Callable[..., list[sk.Direction]]:
    """k random directions of a model, not orthogonal to each other."""

    def draw(model: Any, k: int = 1, seed: int = 0) -> list[sk.Direction]:
        return [tiny_networks.random_direction(model.info, seed=seed + i) for i in range(k)]

    return draw


@pytest.fixture(scope="session")
def relative() -> Callable[..., float]:
    """The largest relative difference of any token."""
    found: Callable[..., float] = tiny_networks.per_token
    return found


@pytest.fixture(scope="session")
def bits() -> Callable[[Any], dict[str, bytes]]:
    """The bytes of every parameter of a model, by name."""
    import torch

    def read(model: Any) -> dict[str, bytes]:
        return {
            name: p.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            for name, p in model.network.named_parameters()
        }

    return read

"""The operation that stands between decoder layers, and the step that it belongs to.

It is opaque to compilers, like vLLM's own attention: a graph calls it by name with the number
of its boundary, and what it does there is looked up when it runs. So one graph, whether made
now or read from a cache, serves every engine of the process and every program.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

NAMESPACE = "steerkit"


class Step(Protocol):
    """What happens at the boundaries in one forward pass."""

    def at(self, hidden: Tensor, residual: Tensor | None, boundary: int) -> None:
        """Change the stream hidden + residual there, in `hidden`, in place."""
        ...


_step: Step | None = None


@contextmanager
def stepping(step: Step) -> Iterator[None]:
    """The step of the forward pass that runs inside. A process runs one at a time."""
    global _step  # noqa: PLW0603 (graphs know the operation by name, not the engine it runs in)
    before, _step = _step, step
    try:
        yield
    finally:
        _step = before


def _steer(hidden: Tensor, residual: Tensor | None, boundary: int) -> None:
    if _step is not None:
        _step.at(hidden, residual, boundary)


def _nothing(hidden: Tensor, residual: Tensor | None, boundary: int) -> None:
    """What compilers see: nothing is returned, and `hidden` may have changed."""


@cache
def defined() -> torch.library.Library:
    """Define `torch.ops.steerkit.steer(hidden!, residual, boundary)`, once a process."""
    # Directly: a decorated custom_op costs twice as much a call.
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    library.define("steer(Tensor(a!) hidden, Tensor? residual, int boundary) -> ()")
    for key in ("CPU", "CUDA"):
        library.impl("steer", _steer, key)
    torch.library.register_fake(f"{NAMESPACE}::steer", _nothing, lib=library)
    return library

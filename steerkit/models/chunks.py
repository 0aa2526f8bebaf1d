"""Blocks that run a large batch a few rows at a time, so that what they compute stays in cache.

On a CPU a block's intermediate results for many rows are written to memory and read back; in
chunks of a few hundred tokens they are not, and the same work takes up to a seventh less time.
Hooks on a block still fire once; hooks inside it would not, so a pass with any is left whole.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from steerkit.models.hooks import incoming

NUMBERS = 1 << 16
"""Numbers of a stream in the smallest chunk (a block's own results are a few times as many)."""
FEWEST = 128
"""Tokens below which multiplying by wide weights loses more than the cache wins."""


def rows_at_once(width: int, d_model: int) -> int:
    """Rows of a chunk, for columns of this number: eight of them, within one to four chunks.

    >>> [rows_at_once(width, 256) for width in (8, 32, 128, 512, 4096)]
    [32, 8, 8, 2, 1]
    """
    fewest = max(FEWEST, NUMBERS // d_model)
    return max(1, max(fewest, min(4 * fewest, 8 * width)) // width)


def watched_inside(modules: Sequence[nn.Module]) -> bool:
    """Whether anybody's hooks are on what these modules are made of."""
    todo = [part for module in modules for part in module._modules.values()]
    for part in todo:
        if part is not None:
            if part._forward_hooks or part._forward_pre_hooks:
                return True
            todo += part._modules.values()
    return False


@contextmanager
def in_chunks(modules: Sequence[nn.Module], rows: int, awake: Callable[[], bool]) -> Iterator[None]:
    """Run these modules' forwards on at most so many rows at a time while the context is open.

    Calls made inside the call whose turn `awake` tells of run whole.
    """
    own = [vars(module).get("forward") for module in modules]
    try:
        for module in modules:
            module.forward = _chunked(module.forward, rows, awake)
        yield
    finally:
        for module, before in zip(modules, own, strict=True):
            if before is None:
                vars(module).pop("forward", None)
            else:
                module.forward = before


def _chunked(forward: Any, rows: int, awake: Callable[[], bool]) -> Any:
    def chunked(*args: Any, **kwargs: Any) -> Any:
        n = len(incoming(args, kwargs))
        if n <= rows or not awake():
            return forward(*args, **kwargs)
        parts = [
            forward(
                *(_cut(value, n, first, rows) for value in args),
                **{name: _cut(value, n, first, rows) for name, value in kwargs.items()},
            )
            for first in range(0, n, rows)
        ]
        return _joined(parts)

    return chunked


def _cut(value: Any, n: int, first: int, rows: int) -> Any:
    """The rows of a chunk, of whatever has a row for each of the batch."""
    if isinstance(value, tuple | list):
        return type(value)(_cut(part, n, first, rows) for part in value)
    if isinstance(value, Tensor) and value.ndim > 1 and len(value) == n:
        return value[first : first + rows]
    return value


def _joined(parts: Sequence[Any]) -> Any:
    """Outputs of all chunks as one."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, tuple | list):
        return type(first)(_joined(column) for column in zip(*parts, strict=True))
    return first

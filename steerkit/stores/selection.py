"""Which rows of a store are meant: by index, or by the metadata of their prompts."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from steerkit.errors import ActivationError
from steerkit.registry import suggest

if TYPE_CHECKING:
    from steerkit.stores.prompt_files import PromptFiles
    from steerkit.stores.shards import Shards

Rows = int | slice | Sequence[int] | Tensor
Where = Mapping[str, Any] | Callable[[Mapping[str, Any]], bool]


def index_of(rows: Rows, n: int) -> Int[Tensor, "row"]:
    """Rows among n by their indices from 0; negative ones count from the end.

    Raises:
        ActivationError: there is no such row.
    """
    if isinstance(rows, slice):
        return torch.arange(*rows.indices(n))
    index = torch.as_tensor([rows] if isinstance(rows, int) else rows)
    if index.dtype == torch.bool and index.shape == (n,):
        return index.nonzero().flatten()
    index = index.long()
    if index.ndim != 1 or ((index < -n) | (index >= n)).any():
        raise ActivationError(f"rows are indices from 0 to {n - 1}; got {rows!r}")
    return torch.where(index < 0, index + n, index)


def matcher(where: Where, columns: Sequence[str]) -> Callable[[Mapping[str, Any]], bool]:
    """Whether the metadata of a prompt are as asked.

    Raises:
        ActivationError: a column that the dataset did not have.
    """
    if callable(where):
        return where
    for name in where:
        if name not in columns:
            raise ActivationError(f"the dataset has no column '{name}'; {suggest(name, columns)}")
    wanted = {
        name: tuple(value) if isinstance(value, list | tuple | set | frozenset) else (value,)
        for name, value in where.items()
    }
    return lambda metadata: all(metadata.get(k) in values for k, values in wanted.items())


def rows_where(
    where: Where, columns: Sequence[str], prompts: "PromptFiles", table: "Shards"
) -> Int[Tensor, "row"]:
    """Indices of the rows whose prompt's metadata are as asked, in order."""
    holds = matcher(where, columns)
    found = []
    for number, part in enumerate(prompts.parts):
        kept = torch.tensor([bool(holds(line["metadata"])) for line in prompts.lines(number)])
        own = table.open(number)["prompt"] - part.start
        found.append(kept[own].nonzero().flatten() + table.starts[number])
    return torch.cat(found)

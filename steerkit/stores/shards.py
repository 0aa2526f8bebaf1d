"""The finished shards of one group of sites as one long table of rows, mapped from disk."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float32, Int
from torch import Tensor

from steerkit import mapped
from steerkit.errors import OutputError
from steerkit.stores.encoding import decode
from steerkit.stores.executor import Record
from steerkit.stores.spec import Spec

OPEN = 512
"""Shards that stay mapped; a map costs address space and an entry in the system's table."""


class Shards:
    """Random access to the rows of a group. Values are read when touched."""

    def __init__(self, folder: Path, spec: Spec, records: Sequence[Record]) -> None:
        self.folder = folder
        self.spec = spec
        self.records = tuple(records)
        counts = torch.tensor([record.rows for record in records])
        self.ends = counts.cumsum(0)
        self.starts = self.ends - counts
        self._maps: OrderedDict[int, dict[str, Tensor]] = OrderedDict()

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def open(self, shard: int) -> Mapping[str, Tensor]:
        """The tensors of one shard, mapped.

        Raises:
            OutputError: its file is missing or cut off.
        """
        found = self._maps.pop(shard, None)
        if found is None:
            path = self.folder / self.records[shard].name
            try:
                found = mapped.read(path)
            except (OSError, ValueError) as error:
                raise OutputError(
                    f"cannot read {path}: {error}; run the same capture again, which makes it anew"
                ) from error
            if len(self._maps) >= OPEN:
                self._maps.popitem(last=False)
        self._maps[shard] = found
        return found

    def values(self, shard: int, site: str, rows: "slice | Tensor") -> Float32[Tensor, "row d"]:
        """Rows of one shard at one site, as float32; counted within the shard."""
        tensors = self.open(shard)
        scale = tensors.get(f"scale.{site}")
        return decode(tensors[f"values.{site}"][rows], None if scale is None else scale[rows])

    def gather(self, site: str, rows: Int[Tensor, "row"]) -> Float32[Tensor, "row d"]:
        """Rows at one site, in the order asked, wherever they lie."""
        width = self.open(0)[f"values.{site}"].shape[1]
        found = torch.empty((len(rows), width))
        for shard, place, local in self._split(rows):
            found[place] = self.values(shard, site, local)
        return found

    def column(self, name: str, rows: Int[Tensor, "row"]) -> Int[Tensor, "row"]:
        """`prompt`, `position` or `token` of rows, in the order asked."""
        found = torch.empty(len(rows), dtype=torch.int64)
        for shard, place, local in self._split(rows):
            found[place] = self.open(shard)[name][local].long()
        return found

    def _split(
        self, rows: Int[Tensor, "row"]
    ) -> list[tuple[int, "slice | Tensor", "slice | Tensor"]]:
        """For each shard that rows lie in: which of them, and where they are in it.

        Runs of neighbours come as slices, which read without a copy of their indices.
        """
        if not len(rows):
            return []
        of = torch.searchsorted(self.ends, rows, right=True)
        found: list[tuple[int, slice | Tensor, slice | Tensor]] = []
        for shard in of.unique().tolist():
            place = (of == shard).nonzero().flatten()
            local = rows[place] - self.starts[shard]
            found.append((shard, _run(place), _run(local)))
        return found


def _run(index: Int[Tensor, "row"]) -> "slice | Tensor":
    """A slice where indices are neighbours in order, else the indices."""
    first, count = int(index[0]), len(index)
    together = int(index[-1]) - first == count - 1 and bool((index.diff() == 1).all())
    return slice(first, first + count) if together else index

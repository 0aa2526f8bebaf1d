"""Rows of a store in shuffled batches, read in long runs."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from steerkit.stores.encoding import decode
from steerkit.stores.shards import Shards

BLOCK = 64
"""Neighbouring rows that are read together."""
MIX_BYTES = 64 * 2**20
"""What is mixed at a time, as stored."""


def batches(
    shards: Shards, site: str, size: int, *, shuffle: bool, seed: int, drop_last: bool
) -> Iterator[Float32[Tensor, "row d"]]:
    """Every row once; with `shuffle`, blocks of rows in random order, mixed a buffer at a time."""
    rest: Tensor | None = None
    for piece in _pieces(shards, site, size, seed) if shuffle else _in_order(shards, site, size):
        joined = piece if rest is None else torch.cat([rest, piece])
        full = len(joined) // size * size
        yield from joined[:full].split(size) if full else ()
        rest = joined[full:] if full < len(joined) else None
    if rest is not None and not drop_last:
        yield rest


def _in_order(shards: Shards, site: str, size: int) -> Iterator[Tensor]:
    for shard, record in enumerate(shards.records):
        for start in range(0, record.rows, size):
            yield shards.values(shard, site, slice(start, min(start + size, record.rows)))


def _pieces(shards: Shards, site: str, size: int, seed: int) -> Iterator[Tensor]:
    """Shuffled rows, about a batch at a time."""
    rng = np.random.default_rng(seed)
    blocks = [
        (shard, start)
        for shard, record in enumerate(shards.records)
        for start in range(0, record.rows, BLOCK)
    ]
    if not blocks:
        return
    stored = shards.open(0)[f"values.{site}"]
    at_once = max(8, MIX_BYTES // (BLOCK * stored.shape[1] * stored.itemsize), size // BLOCK)
    buffer = torch.empty((at_once * BLOCK, stored.shape[1]), dtype=stored.dtype)
    scales = torch.empty(len(buffer)) if f"scale.{site}" in shards.open(0) else None
    order = rng.permutation(len(blocks))
    for first in range(0, len(order), at_once):
        filled = 0
        for which in np.sort(order[first : first + at_once]):  # forward on the disk
            shard, start = blocks[which]
            tensors = shards.open(shard)
            block = tensors[f"values.{site}"][start : start + BLOCK]
            buffer[filled : filled + len(block)] = block
            if scales is not None:
                scales[filled : filled + len(block)] = tensors[f"scale.{site}"][
                    start : start + BLOCK
                ]
            filled += len(block)
        mixed = torch.from_numpy(rng.permutation(filled))
        for rows in mixed.split(size):
            yield decode(buffer[rows], None if scales is None else scales[rows])

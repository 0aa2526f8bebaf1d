"""Rows of a store in shuffled batches, read in long runs."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from steerkit.stores.shards import Shards

BLOCK = 64
"""Neighbouring rows that are read together."""
MIX_BYTES = 64 * 2**20
"""What is mixed at a time, as float32."""


def batches(
    shards: Shards,
    site: str,
    size: int,
    *,
    shuffle: bool,
    seed: int,
    drop_last: bool,
    held_out: float = 0.0,
    held: bool = False,
) -> Iterator[Float32[Tensor, "row d"]]:
    """Every row once; with `shuffle`, blocks of rows in random order, mixed a buffer at a time.

    With `held_out`, the same blocks are left out whatever the seed; `held` gives them alone.
    """
    blocks = _blocks(shards, held_out, held)
    mixed = _mixed(shards, site, size, seed, blocks)
    begun: list[Tensor] = []  # a batch whose end is in the next piece
    for piece in mixed if shuffle else _in_order(shards, site, size):
        start = 0
        while start < len(piece):
            part = piece[start : start + size - sum(map(len, begun))]
            start += len(part)
            begun.append(part)
            if sum(map(len, begun)) == size:
                yield part if len(begun) == 1 else torch.cat(begun)
                begun = []
    if begun and not drop_last:
        yield torch.cat(begun)


def _in_order(shards: Shards, site: str, size: int) -> Iterator[Tensor]:
    step = max(1, 2**13 // size) * size
    for shard, record in enumerate(shards.records):
        for start in range(0, record.rows, step):
            yield shards.values(shard, site, slice(start, start + step))


def _blocks(shards: Shards, held_out: float, held: bool) -> list[tuple[int, int]]:
    """Shard and first row of each block."""
    blocks = [
        (shard, start)
        for shard, record in enumerate(shards.records)
        for start in range(0, record.rows, BLOCK)
    ]
    if not held_out:
        return blocks
    order = np.random.default_rng(len(blocks)).permutation(len(blocks))
    n = max(1, round(held_out * len(blocks)))
    return [blocks[i] for i in np.sort(order[:n] if held else order[n:])]


def _mixed(
    shards: Shards, site: str, size: int, seed: int, blocks: list[tuple[int, int]]
) -> Iterator[Tensor]:
    """Buffers of shuffled rows: each block is read in one run and scattered into its buffer.

    One pass over the memory: to read into a buffer and to gather batches from it are two.
    """
    rng = np.random.default_rng(seed)
    if not blocks:
        return
    width = shards.open(0)[f"values.{site}"].shape[1]
    at_once = max(8, MIX_BYTES // (BLOCK * width * 4), size // BLOCK)
    order = rng.permutation(len(blocks))
    for first in range(0, len(order), at_once):
        chosen = [blocks[i] for i in np.sort(order[first : first + at_once])]  # forward on disk
        rows = sum(min(BLOCK, shards.records[shard].rows - start) for shard, start in chosen)
        place = rng.permutation(rows)
        # numpy scatters rows at twice the speed of torch's index_copy_.
        buffer = np.empty((rows, width), np.float32)
        filled = 0
        for shard, start in chosen:
            block = shards.values(shard, site, slice(start, start + BLOCK)).numpy()
            buffer[place[filled : filled + len(block)]] = block
            filled += len(block)
        yield torch.from_numpy(buffer)

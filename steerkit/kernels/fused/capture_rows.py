"""K4: selected rows of the stream, cast, into a ring that was allocated before."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from steerkit.kernels.fused.launch import flat, on_device_of, tile, warps


@triton.jit
def kernel(
    h: tl.tensor,
    place: tl.tensor,
    ring: tl.tensor,
    tokens: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    ring_stride: tl.tensor,
    capacity: tl.tensor,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Rows `[ROWS BLOCK]` of one program; only those that have a place are read."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    to = tl.load(place + row, mask=row < tokens, other=-1)
    inside = ((to >= 0) & (to < capacity))[:, None] & (columns < D)[None, :]
    at = row[:, None] * row_stride + columns[None, :] * column_stride
    values = tl.load(h + at, mask=inside, other=0.0)
    out = ring + to[:, None] * ring_stride + columns[None, :]
    tl.store(out, values.to(ring.dtype.element_ty), mask=inside)


@torch.library.custom_op("steerkit::capture_rows_", mutates_args=("ring",))
def capture_rows_(h: Tensor, place: Tensor, ring: Tensor) -> None:
    """`static.capture_rows`: row t of h goes to `ring[place[t]]`, nowhere if that is negative."""
    rows = flat(h)
    tokens, d = rows.shape
    if not tokens:
        return
    size, block = tile(tokens), triton.next_power_of_2(d)
    with on_device_of(h):
        kernel[(triton.cdiv(tokens, size),)](
            rows, place.reshape(-1).contiguous(), ring, tokens, *rows.stride(), ring.stride(0),
            ring.shape[0] - 1, D=d, ROWS=size, BLOCK=block, num_warps=warps(block),
        )  # fmt: skip

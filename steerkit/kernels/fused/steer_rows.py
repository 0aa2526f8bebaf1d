"""K2: the program of every row, alone; for hooks and for outputs of attention and MLP.

One read and one write of the stream; in place, rows at which nothing acts cost neither.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from steerkit.kernels import static
from steerkit.kernels.fused.launch import (
    flat,
    gradients,
    on_device_of,
    shape_of,
    table_of,
    tile,
    warps,
)
from steerkit.kernels.fused.program import anywhere, run_program


@triton.jit(do_not_specialize=["site"])
def kernel(
    h: tl.tensor,
    out: tl.tensor,
    slot: tl.tensor,
    active: tl.tensor,
    read: tl.tensor,
    write: tl.tensor,
    gate: tl.tensor,
    numbers: tl.tensor,
    codes: tl.tensor,
    strength: tl.tensor,
    tokens: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    active_stride: tl.tensor,
    site: tl.tensor,
    SITES: tl.constexpr,
    GROUPS: tl.constexpr,
    TERMS: tl.constexpr,
    CODES: tl.constexpr,
    READS: tl.constexpr,
    GATES: tl.constexpr,
    TURNS: tl.constexpr,
    KEEPS: tl.constexpr,
    D: tl.constexpr,
    IN_PLACE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Rows `[ROWS BLOCK]` of one program; the output is contiguous unless it is the input."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    here = row < tokens
    bits = tl.load(active + row * active_stride, mask=here, other=0)
    touched = bits != 0
    if IN_PLACE:
        if anywhere(touched) == 0:
            return
    inside = here[:, None] & (columns < D)[None, :]
    at = row[:, None] * row_stride + columns[None, :] * column_stride
    if IN_PLACE:
        raw = tl.load(h + at, mask=inside & touched[:, None], other=0.0)
    else:
        raw = tl.load(h + at, mask=inside, other=0.0)
    x = tl.where(touched[:, None], raw, 0.0).to(numbers.dtype.element_ty)
    its = tl.load(slot + row, mask=here & touched, other=0).to(tl.int64)
    x, moved = run_program(
        x, bits, its, columns, read, write, gate, numbers, codes, strength, site,
        SITES, GROUPS, TERMS, CODES, READS, GATES, TURNS, KEEPS, D,
    )  # fmt: skip
    if IN_PLACE:
        tl.store(out + at, x.to(out.dtype.element_ty), mask=inside & moved[:, None])
    else:
        result = tl.where(moved[:, None], x.to(out.dtype.element_ty), raw)
        tl.store(out + row[:, None] * D + columns[None, :], result, mask=inside)


def _launch(
    h: Tensor, out: Tensor, slot: Tensor, active: Tensor, parts: list[Tensor], site: int, bits: int
) -> None:
    read, write, gate, numbers, codes, strength = parts
    tokens, d = h.shape
    if not tokens:
        return
    rows, block = tile(tokens), triton.next_power_of_2(d)
    with on_device_of(h):
        kernel[(triton.cdiv(tokens, rows),)](
            h, out, slot, active, read, write, gate, numbers, codes, strength,
            tokens, h.stride(0), h.stride(1), active.stride(0), site,
            **shape_of(parts, bits), IN_PLACE=out is h, ROWS=rows, BLOCK=block,
            num_warps=warps(block),
        )  # fmt: skip


@torch.library.custom_op("steerkit::steer_rows", mutates_args=())
def steer_rows(
    h: Tensor,
    slot: Tensor,
    active: Tensor,
    read: Tensor,
    write: Tensor,
    gate: Tensor,
    numbers: Tensor,
    codes: Tensor,
    strength: Tensor,
    site: int,
    opcodes: int,
) -> Tensor:
    """`static.rows_program` into a new tensor; `opcodes` are bits, the rest is as there."""
    out = torch.empty_like(h, memory_format=torch.contiguous_format)
    parts = [read, write, gate, numbers, codes, strength]
    its, on = slot.reshape(-1).contiguous(), active.reshape(-1)
    _launch(flat(h), flat(out), its, on, parts, site, opcodes)
    return out


@steer_rows.register_fake
def _(h: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(h, memory_format=torch.contiguous_format)


@torch.library.custom_op("steerkit::steer_rows_", mutates_args=("h",))
def steer_rows_(
    h: Tensor,
    slot: Tensor,
    active: Tensor,
    read: Tensor,
    write: Tensor,
    gate: Tensor,
    numbers: Tensor,
    codes: Tensor,
    strength: Tensor,
    site: int,
    opcodes: int,
) -> None:
    """The same in place, without a gradient. `h` is `[token d_model]` of any strides."""
    parts = [read, write, gate, numbers, codes, strength]
    _launch(h, h, slot.contiguous(), active, parts, site, opcodes)


_DIFFERENTIABLE = (0, 3, 4, 6, 8)
"""Arguments of `steer_rows` that its gradients are by."""


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:9])
    ctx.site, ctx.opcodes = inputs[9:]


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    h, slot, active, read, write, gate, numbers, codes, strength = ctx.saved_tensors

    def f(h: Tensor, read: Tensor, write: Tensor, numbers: Tensor, strength: Tensor) -> Tensor:
        table = table_of(read, write, gate, numbers, codes, strength, ctx.opcodes)
        return static.rows_program(h, slot, active, table, ctx.site)

    inputs = dict(zip(_DIFFERENTIABLE, (h, read, write, numbers, strength), strict=True))
    return gradients(f, inputs, ctx.needs_input_grad, [upstream])


steer_rows.register_autograd(_backward, setup_context=_setup)

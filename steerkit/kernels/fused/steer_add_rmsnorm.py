"""K1: residual add, the rows' programs and RMSNorm in one pass over the row.

Reads x and the residual, writes the new stream and its norm: the bytes of the unsteered fused
norm, and beside them only the vectors that are used.
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
from steerkit.kernels.fused.program import run_program


@triton.jit(do_not_specialize=["site"])
def kernel(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    stream: tl.tensor,
    normed: tl.tensor,
    slot: tl.tensor,
    active: tl.tensor,
    read: tl.tensor,
    write: tl.tensor,
    gate: tl.tensor,
    numbers: tl.tensor,
    codes: tl.tensor,
    strength: tl.tensor,
    tokens: tl.tensor,
    x_row: tl.tensor,
    x_column: tl.tensor,
    residual_row: tl.tensor,
    residual_column: tl.tensor,
    active_stride: tl.tensor,
    eps: tl.tensor,
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
    GEMMA: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Rows `[ROWS BLOCK]` of one program; both outputs are contiguous."""
    compute = numbers.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    here = row < tokens
    inside = here[:, None] & (columns < D)[None, :]
    bits = tl.load(active + row * active_stride, mask=here, other=0)
    touched = bits != 0
    its = tl.load(slot + row, mask=here & touched, other=0).to(tl.int64)
    at = row[:, None] * x_row + columns[None, :] * x_column
    beside = row[:, None] * residual_row + columns[None, :] * residual_column
    h = tl.load(x + at, mask=inside, other=0.0).to(compute)
    h += tl.load(residual + beside, mask=inside, other=0.0).to(compute)
    steered, moved = run_program(
        tl.where(touched[:, None], h, 0.0), bits, its, columns,
        read, write, gate, numbers, codes, strength, site,
        SITES, GROUPS, TERMS, CODES, READS, GATES, TURNS, KEEPS, D,
    )  # fmt: skip
    h = tl.where(moved[:, None], steered, h)
    out = row[:, None] * D + columns[None, :]
    tl.store(stream + out, h.to(stream.dtype.element_ty), mask=inside)
    root = tl.sqrt(tl.sum(h * h, axis=1) / D + eps)
    unit = h / root[:, None]
    w = tl.load(weight + columns, mask=columns < D, other=0.0).to(compute)[None, :]
    if GEMMA:
        scaled = unit * (1.0 + w)
    else:
        scaled = unit.to(stream.dtype.element_ty).to(compute) * w
    tl.store(normed + out, scaled.to(normed.dtype.element_ty), mask=inside)


def _outputs(x: Tensor, weight: Tensor, gemma: bool) -> tuple[Tensor, Tensor]:
    dtype = x.dtype if gemma else torch.promote_types(x.dtype, weight.dtype)
    stream = torch.empty_like(x, memory_format=torch.contiguous_format)
    return stream, torch.empty_like(stream, dtype=dtype)


@torch.library.custom_op("steerkit::steer_add_rmsnorm", mutates_args=())
def steer_add_rmsnorm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
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
    eps: float,
    gemma: bool,
) -> tuple[Tensor, Tensor]:
    """`static.add_rmsnorm`: the new stream and its norm; `opcodes` are bits."""
    stream, normed = _outputs(x, weight, gemma)
    parts = [read, write, gate, numbers, codes, strength]
    rows, others, on = flat(x), flat(residual), active.reshape(-1)
    tokens, d = rows.shape
    if tokens:
        size, block = tile(tokens), triton.next_power_of_2(d)
        with on_device_of(x):
            kernel[(triton.cdiv(tokens, size),)](
                rows, others, weight.contiguous(), stream, normed, slot.reshape(-1).contiguous(),
                on, *parts, tokens, *rows.stride(), *others.stride(), on.stride(0), eps, site,
                **shape_of(parts, opcodes), GEMMA=gemma, ROWS=size, BLOCK=block,
                num_warps=warps(block),
            )  # fmt: skip
    return stream, normed


@steer_add_rmsnorm.register_fake
def _(x: Tensor, residual: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _outputs(x, weight, rest[-1])


_DIFFERENTIABLE = (0, 1, 2, 5, 6, 8, 10)
"""Arguments of `steer_add_rmsnorm` that its gradients are by."""


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:11])
    ctx.settings = inputs[11:]


def _backward(ctx: Any, to_stream: Tensor, to_normed: Tensor) -> tuple[Tensor | None, ...]:
    *_, slot, active, _, _, gate, _, codes, _ = saved = ctx.saved_tensors
    site, opcodes, eps, gemma = ctx.settings

    def f(*given: Tensor) -> tuple[Tensor, Tensor]:
        x, residual, weight, read, write, numbers, strength = given
        table = table_of(read, write, gate, numbers, codes, strength, opcodes)
        return static.add_rmsnorm(
            x, residual, weight, slot, active, table, site, eps=eps, gemma=gemma
        )

    inputs = {at: saved[at] for at in _DIFFERENTIABLE}
    return gradients(f, inputs, ctx.needs_input_grad, [to_stream, to_normed])


steer_add_rmsnorm.register_autograd(_backward, setup_context=_setup)

"""The program of a tile of rows, in registers: the body that the kernels share.

A masked load brings nothing from memory, so slot 0, unused terms, open gates and constant
terms without a read cost no bytes. Norms are sums of squares of what stands in the registers.
"""

import triton
import triton.language as tl

from steerkit.kernels import layout
from steerkit.program import Opcode

_CONSTANT = tl.constexpr(int(Opcode.CONSTANT))
_AFFINE = tl.constexpr(int(Opcode.AFFINE))
_CLAMP = tl.constexpr(int(Opcode.CLAMP))
_ACTIVATION = tl.constexpr(int(Opcode.ACTIVATION))
_TURN = tl.constexpr(int(Opcode.TURN))
_KEEP_NORM = tl.constexpr(int(Opcode.KEEP_NORM))
_OFFSET = tl.constexpr(layout.OFFSET)
_X = tl.constexpr(layout.X)
_Y = tl.constexpr(layout.Y)
_Z = tl.constexpr(layout.Z)
_THRESHOLD = tl.constexpr(layout.THRESHOLD)
_NUMBERS = tl.constexpr(layout.NUMBERS)
_OPCODE = tl.constexpr(layout.OPCODE)
_GATE = tl.constexpr(layout.GATE)
_PARTNER = tl.constexpr(layout.PARTNER)
_OPEN = tl.constexpr(layout.OPEN)
_COSINE = tl.constexpr(layout.COSINE)
_ABOVE = tl.constexpr(layout.ABOVE)


@triton.jit
def anywhere(flags: tl.tensor) -> tl.tensor:
    """Whether any row of the tile says so."""
    return tl.max(flags.to(tl.int32), axis=0) != 0


@triton.jit
def vectors(
    table: tl.tensor, term: tl.tensor, wanted: tl.tensor, columns: tl.tensor, D: tl.constexpr
) -> tl.tensor:
    """One row of a table for each row of the tile, zeros where it is not wanted."""
    at = table + term[:, None] * D + columns[None, :]
    return tl.load(at, mask=wanted[:, None] & (columns < D)[None, :], other=0.0)


@triton.jit
def opens(
    x: tl.tensor,
    square: tl.tensor,
    on: tl.tensor,
    term: tl.tensor,
    gate: tl.tensor,
    numbers: tl.tensor,
    codes: tl.tensor,
    columns: tl.tensor,
    D: tl.constexpr,
    CODES: tl.constexpr,
) -> tl.tensor:
    """Which rows' gates let this term act; a level that is NaN is neither above nor below."""
    code = tl.load(codes + term * CODES + _GATE, mask=on, other=_OPEN)
    gated = on & (code != _OPEN)
    if anywhere(gated):
        level = tl.sum(x * vectors(gate, term, gated, columns, D), axis=1)
        size = tl.sqrt(square)
        # The cosine of 0 is 0.
        cosine = level / tl.where(size == 0, 1.0, size)
        level = tl.where((code & _COSINE) != 0, cosine, level)
        threshold = tl.load(numbers + term * _NUMBERS + _THRESHOLD, mask=gated, other=0.0)
        passes = tl.where((code & _ABOVE) != 0, level >= threshold, level < threshold)
        on = on & ((code == _OPEN) | passes)
    return on


@triton.jit
def coefficient(
    x: tl.tensor,
    on: tl.tensor,
    term: tl.tensor,
    first: tl.tensor,
    opcode: tl.tensor,
    read: tl.tensor,
    numbers: tl.tensor,
    codes: tl.tensor,
    columns: tl.tensor,
    D: tl.constexpr,
    CODES: tl.constexpr,
    TURNS: tl.constexpr,
) -> tl.tensor:
    """c of one term, by its opcode."""
    a = tl.load(numbers + term * _NUMBERS + _X, mask=on, other=0.0)
    c = a
    reads = on & (opcode != _CONSTANT) & (opcode != _KEEP_NORM)
    if anywhere(reads):
        b = tl.load(numbers + term * _NUMBERS + _Y, mask=reads, other=0.0)
        z = tl.load(numbers + term * _NUMBERS + _Z, mask=reads, other=0.0)
        offset = tl.load(numbers + term * _NUMBERS + _OFFSET, mask=reads, other=0.0)
        p = tl.sum(x * vectors(read, term, reads, columns, D), axis=1) - offset
        c = tl.where(opcode == _AFFINE, a * p + b, c)
        c = tl.where(opcode == _CLAMP, z * (tl.minimum(tl.maximum(p, a), b) - p), c)
        c = tl.where(opcode == _ACTIVATION, z * (a - tl.where(p > b, p, 0.0)), c)
        if TURNS:
            turns = reads & (opcode == _TURN)
            if anywhere(turns):
                partner = tl.load(codes + term * CODES + _PARTNER, mask=turns, other=0)
                other = first + partner
                shift = tl.load(numbers + other * _NUMBERS + _OFFSET, mask=turns, other=0.0)
                q = tl.sum(x * vectors(read, other, turns, columns, D), axis=1) - shift
                c = tl.where(turns, z * (a * tl.sqrt(p * p + q * q) - p), c)
    return c


@triton.jit
def run_program(
    x: tl.tensor,
    bits: tl.tensor,
    slot: tl.tensor,
    columns: tl.tensor,
    read: tl.tensor,
    write: tl.tensor,
    gate: tl.tensor,
    numbers: tl.tensor,
    codes: tl.tensor,
    strength: tl.tensor,
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
) -> tl.tensor:
    """All groups of each row's program: the new rows, and which rows any term acted on.

    `x` is `[row column]` in the table's dtype, 0 in columns beyond D.
    """
    touched = bits != 0
    scale = tl.load(strength + slot, mask=touched, other=0.0)
    moved = bits != bits
    for group in tl.static_range(GROUPS):
        square = tl.sum(x * x, axis=1)
        change = tl.zeros_like(x)
        gain = tl.zeros_like(scale)
        acted = bits != bits
        first = ((slot * SITES + site) * GROUPS + group) * TERMS
        for j in tl.static_range(TERMS):
            on = ((bits >> (group * TERMS + j)) & 1) != 0
            if anywhere(on):
                term = first + j
                if GATES:
                    on = opens(x, square, on, term, gate, numbers, codes, columns, D, CODES)
                opcode = tl.load(codes + term * CODES + _OPCODE, mask=on, other=_CONSTANT)
                w = vectors(write, term, on, columns, D)
                if READS:
                    c = coefficient(
                        x, on, term, first, opcode, read, numbers, codes, columns,
                        D, CODES, TURNS,
                    )  # fmt: skip
                else:
                    c = tl.load(numbers + term * _NUMBERS + _X, mask=on, other=0.0)
                if KEEPS:
                    keeps = on & (opcode == _KEEP_NORM)
                    if anywhere(keeps):
                        aside = x + tl.where(keeps, c, 0.0)[:, None] * w
                        new = tl.sqrt(tl.sum(aside * aside, axis=1))
                        nowhere = new == 0
                        ratio = tl.sqrt(square) / tl.where(nowhere, 1.0, new)
                        c = tl.where(keeps, tl.where(nowhere, 0.0, ratio * c), c)
                        gain += tl.where(keeps & (new != 0), scale * (ratio - 1.0), 0.0)
                change += tl.where(on[:, None], (scale * c)[:, None] * w, 0.0)
                acted = acted | on
        x = tl.where(acted[:, None], x * (1.0 + gain)[:, None] + change, x)
        moved = moved | acted
    return x, moved

"""What all launches share: tables as flat arguments, tiles, devices, derivatives by torch."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from torch import Tensor

from steerkit.kernels import layout
from steerkit.kernels.device import TableTensors
from steerkit.kernels.layout import Capacity
from steerkit.program import Opcode

WIDEST = 16384
"""A row is held in registers; wider streams take the torch path."""


def opcode_bits(opcodes: Iterable[Opcode]) -> int:
    """A set of opcodes as the bits of one integer, which operators can take."""
    return sum(1 << int(opcode) for opcode in opcodes)


def table_of(
    read: Tensor,
    write: Tensor,
    gate: Tensor,
    numbers: Tensor,
    codes: Tensor,
    strength: Tensor,
    opcodes: int,
) -> TableTensors:
    """The table that these tensors are; its capacity is told by their shapes."""
    slots, _, groups, terms, _ = write.shape
    capacity = Capacity(
        slots=slots - 1,
        terms=terms,
        groups=groups,
        indices=codes.shape[-1] - layout.INDEX,
        latches=0,
        gates=gate.shape[-1] > 0,
        opcodes=frozenset(opcode for opcode in Opcode if opcodes >> int(opcode) & 1),
    )
    return TableTensors(read, write, gate, numbers, codes, strength, capacity)


def shape_of(parts: Sequence[Tensor], opcodes: int) -> dict[str, int | bool]:
    """What of a table is fixed when a kernel is compiled."""
    read, write, gate, _, codes, _ = parts
    return {
        "SITES": write.shape[1],
        "GROUPS": write.shape[2],
        "TERMS": write.shape[3],
        "CODES": codes.shape[-1],
        "READS": read.shape[-1] > 0,
        "GATES": gate.shape[-1] > 0,
        "TURNS": bool(opcodes >> int(Opcode.TURN) & 1),
        "KEEPS": bool(opcodes >> int(Opcode.KEEP_NORM) & 1),
        "D": write.shape[-1],
    }


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return bool(triton.knobs.runtime.interpret)


def tile(tokens: int) -> int:
    """Rows of one program: the interpreter pays for programs, a GPU for idle lanes."""
    return min(16, triton.next_power_of_2(max(tokens, 1))) if interpreted() else 1


def warps(width: int) -> int:
    """Warps of a program that holds rows of this many columns, a power of two."""
    return max(1, min(16, width // 512))


def on_device_of(h: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be that of the stream."""
    return torch.cuda.device(h.device) if h.is_cuda else nullcontext()


def flat(h: Tensor) -> Tensor:
    """`[token d_model]` of a stream with any leading axes; a view wherever there is one."""
    return h.reshape(-1, h.shape[-1])


def gradients(
    f: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Mapping[int, Tensor],
    wanted: Sequence[bool],
    upstream: Sequence[Tensor],
) -> tuple[Tensor | None, ...]:
    """What an operator's backward returns, by torch's own derivative of `f`.

    Args:
        f: the same computation in torch, of the `inputs` in order.
        inputs: those of the operator's arguments that can have a gradient, by their position.
        wanted: for every argument of the operator, whether its gradient is asked for.
        upstream: gradients of the outputs.

    Returns:
        One entry an argument: zeros where `f` does not depend on it, None where not wanted.
    """
    with torch.enable_grad():
        given = {at: x.detach().requires_grad_(wanted[at]) for at, x in inputs.items()}
        out = f(*given.values())
        outs = out if isinstance(out, tuple) else (out,)
        asked = [at for at in given if wanted[at]]
        found = torch.autograd.grad(
            outs, [given[at] for at in asked], list(upstream), allow_unused=True
        )
    parts: list[Tensor | None] = [None] * len(wanted)
    for at, part in zip(asked, found, strict=True):
        parts[at] = torch.zeros_like(given[at]) if part is None else part.contiguous()
    return tuple(parts)

"""The one form that every intervention lowers to: h' = h + sum_j c_j W_j.

A `Program` is an ordered list of `Group`s. The terms of a group all read the incoming h;
later groups read what earlier ones left. Each term reads p = R_j.h - b_j and an opcode maps
it to the coefficient c_j of the written row W_j. Hooks, kernels and sweeps execute
programs and know nothing of the interventions they came from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.batch import Positions
from steerkit.errors import InterventionError
from steerkit.site import Site


class Opcode(IntEnum):
    """How a term's read p becomes its coefficient c, with parameters (x, y, z)."""

    CONSTANT = 0
    """c = x."""
    AFFINE = 1
    """c = x*p + y."""
    CLAMP = 2
    """c = z*(clip(p, x, y) - p): p moves into [x, y], by the fraction z."""


@dataclass(frozen=True, eq=False)
class Group:
    """Terms that read the same incoming h, each with its own position rule.

    Shapes: read, write `[term d_model]`; offset `[term]`; params `[term 3]`; one opcode and
    one `Positions` a term. Everything float64 on the CPU; executors cast.
    """

    opcodes: tuple[Opcode, ...]
    read: Float[Tensor, "term d_model"]
    offset: Float[Tensor, "term"]
    write: Float[Tensor, "term d_model"]
    params: Float[Tensor, "term 3"]
    positions: tuple[Positions, ...]

    def __post_init__(self) -> None:
        n = len(self.opcodes)
        shapes = {
            "read": (self.read, (n, self.d_model)),
            "offset": (self.offset, (n,)),
            "write": (self.write, (n, self.d_model)),
            "params": (self.params, (n, 3)),
        }
        for name, (tensor, expected) in shapes.items():
            if tuple(tensor.shape) != expected:
                raise InterventionError(
                    f"program field '{name}' has shape {tuple(tensor.shape)}, expected {expected}"
                )
            # Edges of clamps may be infinite: below for low, above for high.
            known = self._without_open_edges() if name == "params" else tensor
            if not torch.isfinite(known).all():
                raise InterventionError(
                    f"program field '{name}' is not finite; look at the direction it came from"
                )
        if len(self.positions) != n:
            raise InterventionError(f"{n} terms need {n} position rules; got {len(self.positions)}")

    @property
    def d_model(self) -> int:
        """Width of the stream."""
        return self.write.shape[1]

    def _without_open_edges(self) -> Float[Tensor, "term 3"]:
        clamps = torch.tensor([op == Opcode.CLAMP for op in self.opcodes], dtype=torch.bool)
        open_edge = torch.zeros_like(self.params, dtype=torch.bool)
        open_edge[:, 0] = clamps & (self.params[:, 0] == -torch.inf)
        open_edge[:, 1] = clamps & (self.params[:, 1] == torch.inf)
        return self.params.masked_fill(open_edge, 0)

    def __len__(self) -> int:
        return len(self.opcodes)


@dataclass(frozen=True, eq=False)
class Program:
    """Groups applied in order. No groups means: leave the stream untouched."""

    groups: tuple[Group, ...] = ()

    def __bool__(self) -> bool:
        return any(len(group) for group in self.groups)

    def then(self, later: "Program") -> "Program":
        """This program, followed by `later` (stacked views)."""
        return Program(self.groups + later.groups)

    @staticmethod
    def parallel(programs: Sequence["Program"]) -> "Program":
        """One program whose i-th group joins the i-th groups of all: they read the same h."""
        live = [program for program in programs if program]
        depth = max((len(program.groups) for program in live), default=0)
        return Program(
            tuple(join([p.groups[i] for p in live if i < len(p.groups)]) for i in range(depth))
        )


def join(groups: Sequence[Group]) -> Group:
    """Concatenate the terms of several groups into one."""
    return Group(
        opcodes=tuple(op for g in groups for op in g.opcodes),
        read=torch.cat([g.read for g in groups]),
        offset=torch.cat([g.offset for g in groups]),
        write=torch.cat([g.write for g in groups]),
        params=torch.cat([g.params for g in groups]),
        positions=tuple(p for g in groups for p in g.positions),
    )


@dataclass(frozen=True, eq=False)
class ProgramTable:
    """Programs by site and slot; every batch row points at one slot, and slot 0 is none.

    `slots[i]` maps each site to the program that rows at slot i+1 run there.
    """

    slots: tuple[Mapping[Site, Program], ...]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site at which some slot has something to do, in forward order."""
        return tuple(sorted({s for slot in self.slots for s, program in slot.items() if program}))

    def at(self, site: Site) -> tuple[Program, ...]:
        """The programs of all slots at one site; entry 0 is the empty program of slot 0."""
        return (Program(), *(slot.get(site, Program()) for slot in self.slots))

    def __len__(self) -> int:
        return len(self.slots) + 1

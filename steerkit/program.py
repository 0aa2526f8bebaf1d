"""The one form that every intervention lowers to: h' = (1 + sum_j g_j) h + sum_j c_j W_j.

A `Program` is an ordered list of `Group`s. The terms of a group all read the incoming h;
later groups read what earlier ones left. Each term reads p = R_j.h - b_j and an opcode maps
it to the coefficient c_j of the written row W_j (and, where it keeps the norm, to a gain g_j
of the stream itself). A `Gate` may close a term, by what stands at the same token or by a
`Latch` that was decided on the prompt. Hooks, kernels and sweeps execute programs and know
nothing of the interventions they came from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

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
    ACTIVATION = 3
    """c = z*(x - act(p)), act(p) = p where p > y, else 0: a ReLU or JumpReLU feature set to x."""
    TURN = 4
    """c = z*(x*r - p), r = hypot(p, q), q the read of the partner: turned to an angle whose cosine
    (first of a pair) or sine (second) is x. Pairs are neighbours, the first one has y = 1, the
    second y = -1: the offset of the partner."""
    KEEP_NORM = 5
    """c = G*x and g = G - 1 with G = |h| / |h + x W|: an addition that keeps the norm of h. Reads
    along its own unit write row, without an offset. Where h + x W = 0, h stays as it is."""


Measure = Literal["cosine", "projection"]
Pooled = Literal["last_prompt", "mean_prompt"]


@dataclass(frozen=True, eq=False)
class Gate:
    """When a term acts: where v.h (or its cosine) is above a threshold, or below it.

    Attributes:
        read: v, a unit vector `[d_model]`, float64.
        threshold: what v.h or cos(v, h) is compared with; equal counts as above. The cosine
            of h = 0 is 0; a NaN is neither above nor below.
        measure: `cosine` or `projection`.
        above: whether the term acts above the threshold or below it.
        latch: the name of the latch whose register decides; empty for the incoming h of the
            same token, which `read` and `threshold` then are about (the h that this group
            reads). The other fields repeat the latch's own condition and decide nothing.
    """

    read: Float[Tensor, "d_model"]
    threshold: float
    measure: Measure = "projection"
    above: bool = True
    latch: str = ""


@dataclass(frozen=True, eq=False)
class Latch:
    """A condition decided once a request, on its prompt, and remembered for later sites and tokens.

    The incoming h at the latch's site (before the groups of that site) is measured at the last
    prompt token, or averaged over the prompt's tokens and measured then. Until the decision
    its register is closed.

    A term that a latch gates acts from the last prompt token on, never before it, whatever
    its position rule: earlier tokens may have run in an earlier chunk of the prompt, and
    a program means the same however the prompt is fed. Sites before the latch's cannot use it.
    Latches of one name are one latch: names are made from the condition and its site.
    """

    name: str
    condition: Gate
    pooled: Pooled = "last_prompt"


@dataclass(frozen=True, eq=False)
class Group:
    """Terms that read the same incoming h, each with its own position rule.

    Shapes: read, write `[term d_model]`; offset `[term]`; params `[term 3]`; one opcode, one
    `Positions` and one gate (None: always open) a term; no gates at all is short for all None.
    Everything float64 on the CPU; executors cast.
    """

    opcodes: tuple[Opcode, ...]
    read: Float[Tensor, "term d_model"]
    offset: Float[Tensor, "term"]
    write: Float[Tensor, "term d_model"]
    params: Float[Tensor, "term 3"]
    positions: tuple[Positions, ...]
    gates: tuple[Gate | None, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.opcodes)
        if self.gates and len(self.gates) != n:
            raise InterventionError(f"{n} terms need {n} gates or none; got {len(self.gates)}")
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
        for term, opcode in enumerate(self.opcodes):
            if opcode == Opcode.TURN:
                self._check_pair(term)
            elif opcode == Opcode.KEEP_NORM:
                self._check_kept(term)

    def _check_pair(self, term: int) -> None:
        """Both terms of a turn stand side by side and act at the same tokens."""
        step = float(self.params[term, 1])
        other = term + int(step)
        if (
            step not in (1, -1)
            or not 0 <= other < len(self)
            or self.opcodes[other] != Opcode.TURN
            or float(self.params[other, 1]) != -step
        ):
            raise InterventionError(
                f"term {term} turns without its partner: turns come in pairs of neighbours, "
                "the first with y = 1 and the second with y = -1"
            )
        gates = self.every_gate
        if self.positions[term] != self.positions[other] or gates[term] is not gates[other]:
            raise InterventionError(
                f"terms {term} and {other} turn together but do not act at the same tokens; "
                "give them the same positions and the same gate"
            )

    def _check_kept(self, term: int) -> None:
        """An addition that keeps the norm has one unit vector for both of its rows."""
        row = self.write[term].double()
        same = torch.equal(self.read[term].double(), row) and float(self.offset[term]) == 0
        if not same or abs(float(row.norm()) - 1) > 1e-6:
            raise InterventionError(
                f"term {term} keeps the norm: it reads along its own unit write row, without an "
                f"offset; got a write row of norm {float(row.norm()):.6g}, "
                f"{'the same' if same else 'another'} read row or an offset"
            )

    @property
    def d_model(self) -> int:
        """Width of the stream."""
        return self.write.shape[1]

    @property
    def every_gate(self) -> tuple[Gate | None, ...]:
        """One entry a term, None for always open, also where `gates` is left out."""
        return self.gates or (None,) * len(self)

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
    """Groups applied in order. No groups means: leave the stream untouched.

    `latches` are decided here on the incoming h; they change nothing by themselves.
    """

    groups: tuple[Group, ...] = ()
    latches: tuple[Latch, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.latches) or any(len(group) for group in self.groups)

    def then(self, later: "Program") -> "Program":
        """This program, followed by `later` (stacked views)."""
        return Program(self.groups + later.groups, _once(self.latches + later.latches))

    @staticmethod
    def parallel(programs: Sequence["Program"]) -> "Program":
        """One program whose i-th group joins the i-th groups of all: they read the same h."""
        live = [program for program in programs if program]
        depth = max((len(program.groups) for program in live), default=0)
        return Program(
            tuple(join([p.groups[i] for p in live if i < len(p.groups)]) for i in range(depth)),
            _once([latch for program in live for latch in program.latches]),
        )


def _once(latches: Sequence[Latch]) -> tuple[Latch, ...]:
    return tuple({latch.name: latch for latch in latches}.values())


def join(groups: Sequence[Group]) -> Group:
    """Concatenate the terms of several groups into one."""
    return Group(
        opcodes=tuple(op for g in groups for op in g.opcodes),
        read=torch.cat([g.read for g in groups]),
        offset=torch.cat([g.offset for g in groups]),
        write=torch.cat([g.write for g in groups]),
        params=torch.cat([g.params for g in groups]),
        positions=tuple(p for g in groups for p in g.positions),
        gates=tuple(gate for g in groups for gate in g.every_gate)
        if any(g.gates for g in groups)
        else (),
    )


@dataclass(frozen=True, eq=False)
class ProgramTable:
    """Programs by site and slot; every batch row points at one slot, and slot 0 is none.

    `slots[i]` maps each site to the program that rows at slot i+1 run there.

    Raises:
        InterventionError: a gate whose latch no earlier site of its slot decides.
    """

    slots: tuple[Mapping[Site, Program], ...]

    def __post_init__(self) -> None:
        for slot, programs in enumerate(self.slots, 1):
            decided: set[str] = set()
            for site, program in sorted(programs.items()):
                decided |= {latch.name for latch in program.latches}
                gates = [gate for group in program.groups for gate in group.gates if gate]
                missing = sorted({gate.latch for gate in gates if gate.latch} - decided)
                if missing:
                    raise InterventionError(
                        f"a gate of slot {slot} at {site} waits for the latch '{missing[0]}', "
                        "which neither this site nor an earlier one decides; put the latch into "
                        "the program of a site that comes first"
                    )

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site at which some slot has something to do, in forward order."""
        return tuple(sorted({s for slot in self.slots for s, program in slot.items() if program}))

    def at(self, site: Site) -> tuple[Program, ...]:
        """The programs of all slots at one site; entry 0 is the empty program of slot 0."""
        return (Program(), *(slot.get(site, Program()) for slot in self.slots))

    def __len__(self) -> int:
        return len(self.slots) + 1

"""How a group's terms stand in a device table: numbers, codes and vectors at fixed columns.

Every term of every slot is one record: `NUMBERS` floating-point numbers, `CODES` integers and
three vectors. The same columns are read by plain torch and by the Triton kernels.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from steerkit.batch import Positions
from steerkit.errors import InterventionError
from steerkit.program import Gate, Group, Opcode, Program

OFFSET, X, Y, Z, THRESHOLD = range(5)
"""Columns of the numbers: b of the read p = R.h - b, the parameters, the gate's threshold."""
NUMBERS = 5

OPCODE, RULE, GATE, LATCH, PARTNER, INDEX = range(6)
"""Columns of the codes. From `INDEX` on stand the position indices of the rule `indices`."""

NEVER, ALL, PROMPT, LAST_PROMPT, GENERATED, INDICES = range(6)
"""Values of the column `RULE`. `NEVER`: there is no term."""
_RULES = {
    "all": ALL,
    "prompt": PROMPT,
    "last_prompt": LAST_PROMPT,
    "generated": GENERATED,
    "indices": INDICES,
}

COSINE, ABOVE = 1, 2
"""Bits of the column `GATE`, which is -1 for a term without a gate on its own token."""
OPEN = -1
NO_LATCH = -1
NO_INDEX = torch.iinfo(torch.int32).min
"""An index that no token has, counted from either end."""

READERS = frozenset(Opcode) - {Opcode.CONSTANT, Opcode.KEEP_NORM}
"""Opcodes that need R. One that keeps the norm looks at h + x W itself."""

BITS = 62
"""Terms of a site that a token's activity has bits for."""


@dataclass(frozen=True)
class Capacity:
    """What a device table has room for; fixed when it is made, because graphs keep its addresses.

    What is left out costs nothing: a table of additions alone has no reads, no gates, no norms.

    Attributes:
        slots: programs beside the empty one of slot 0.
        terms: terms of one group at one site. Constant additions that share a rule and a gate
            are summed on the host and count once.
        groups: groups at one site that run one after the other.
        indices: positions that a rule `indices` may list.
        latches: latches that the gates of one slot may ask.
        gates: whether terms may be gated by what stands at their own token.
        opcodes: what terms may do.
    """

    slots: int = 8
    terms: int = 4
    groups: int = 1
    indices: int = 4
    latches: int = 2
    gates: bool = True
    opcodes: frozenset[Opcode] = frozenset(Opcode)

    def __post_init__(self) -> None:
        if min(self.slots, self.terms, self.groups) < 1 or min(self.indices, self.latches) < 0:
            raise InterventionError(
                "a table has room for at least one slot, term and group, and for no fewer than "
                f"no indices and latches; got {self}"
            )
        if self.terms * self.groups > BITS:
            raise InterventionError(
                f"a site has room for at most {BITS} terms; got {self.groups} groups of "
                f"{self.terms}"
            )

    @property
    def codes(self) -> int:
        """Integers of a term."""
        return INDEX + self.indices

    @property
    def reads(self) -> bool:
        """Whether some term may need R."""
        return bool(self.opcodes & READERS)

    @classmethod
    def fitting(cls, programs: Sequence[Program], *, slots: int | None = None) -> "Capacity":
        """The least capacity that holds these programs (of any site), one of them a slot.

        Latches are counted over all of them together, since a slot has programs at many sites.
        """
        groups = [[fold(group) for group in p.groups if len(group)] for p in programs]
        terms = [(op, rule, gate) for p in groups for g in p for op, rule, gate in _records(g)]
        return cls(
            slots=max(1, len(programs) if slots is None else slots),
            terms=max((len(g) for p in groups for g in p), default=1),
            groups=max((len(p) for p in groups), default=0) or 1,
            indices=max((len(rule.indices) for _, rule, _ in terms), default=0),
            latches=len({gate.latch for _, _, gate in terms if gate and gate.latch}),
            gates=any(gate is not None and not gate.latch for _, _, gate in terms),
            opcodes=frozenset(op for op, _, _ in terms) or frozenset({Opcode.CONSTANT}),
        )


class Record(NamedTuple):
    """A group as it stands in a table, on the host; terms that there are not are zeros."""

    read: Float[np.ndarray, "*room term d_model"]
    write: Float[np.ndarray, "*room term d_model"]
    gate: Float[np.ndarray, "*room term d_model"]
    numbers: Float[np.ndarray, "*room term number"]
    codes: Int[np.ndarray, "*room term code"]


def fold(group: Group) -> Group:
    """Constant additions that share a rule and a gate, as one: several cost what one does."""
    kept: dict[object, list[int]] = {}
    gates = group.every_gate
    for j, opcode in enumerate(group.opcodes):
        alike = opcode == Opcode.CONSTANT
        kept.setdefault((group.positions[j], id(gates[j])) if alike else j, []).append(j)
    if len(kept) == len(group):
        return group
    first = [terms[0] for terms in kept.values()]
    write, params = group.write[first].double(), group.params[first].double()
    for i, terms in enumerate(kept.values()):
        if len(terms) > 1:
            write[i] = group.params[terms, 0].double() @ group.write[terms].double()
            params[i] = torch.tensor([1.0, 0.0, 0.0])
    return Group(
        opcodes=tuple(group.opcodes[j] for j in first),
        read=group.read[first],
        offset=group.offset[first],
        write=write,
        params=params,
        positions=tuple(group.positions[j] for j in first),
        gates=tuple(gates[j] for j in first) if group.gates else (),
    )


def blank(capacity: Capacity, d_model: int, dtype: torch.dtype) -> Record:
    """Room for the terms of one group, with none in it."""
    n, kind = capacity.terms, np.float64 if dtype == torch.float64 else np.float32
    codes = np.zeros((n, capacity.codes), np.int32)
    codes[:, GATE], codes[:, LATCH], codes[:, INDEX:] = OPEN, NO_LATCH, NO_INDEX
    codes[:, PARTNER] = np.arange(n)
    return Record(
        np.zeros((n, d_model if capacity.reads else 0), kind),
        np.zeros((n, d_model), kind),
        np.zeros((n, d_model if capacity.gates else 0), kind),
        np.zeros((n, NUMBERS), kind),
        codes,
    )


def record(group: Group, capacity: Capacity, registers: Mapping[str, int], out: Record) -> None:
    """Lay a group out in blank room; `registers` numbers the latches of its slot.

    Raises:
        InterventionError: more than the capacity, or a rule that only the eager path knows.
    """
    group = fold(group)
    n = len(group)
    if n > capacity.terms:
        raise InterventionError(
            f"a group of {n} terms does not fit into a table of {capacity.terms} terms "
            "a group; make the table with Capacity(terms=...) at least that"
        )
    codes, thresholds = [], []
    for j, (opcode, rule, gate) in enumerate(_records(group)):
        if opcode not in capacity.opcodes:
            raise InterventionError(
                f"this table was made without room for terms that are {opcode.name}; it has "
                f"{sorted(op.name for op in capacity.opcodes)}: make it with Capacity(opcodes=...)"
            )
        own = gate if gate is not None and not gate.latch else None
        if own is not None:
            if not capacity.gates:
                raise InterventionError(
                    "this table was made without room for gates; make it with Capacity(gates=True)"
                )
            out.gate[j] = own.read.numpy(force=True)
        code = OPEN if own is None else COSINE * (own.measure == "cosine") + ABOVE * own.above
        latch = registers[gate.latch] if gate is not None and gate.latch else NO_LATCH
        partner = j + int(group.params[j, 1]) if opcode == Opcode.TURN else j
        head = [int(opcode), _rule(rule), code, latch, partner]
        codes.append(head + _indices(rule, capacity.indices))
        thresholds.append(0.0 if own is None else own.threshold)
    out.write[:n] = group.write.numpy(force=True)
    if capacity.reads:
        out.read[:n] = group.read.numpy(force=True)
    out.numbers[:n, OFFSET] = group.offset.numpy(force=True)
    out.numbers[:n, X : Z + 1] = group.params.numpy(force=True)
    out.numbers[:n, THRESHOLD] = thresholds
    out.codes[:n] = codes


def _records(group: Group) -> list[tuple[Opcode, Positions, Gate | None]]:
    return list(zip(group.opcodes, group.positions, group.every_gate, strict=True))


def _rule(positions: Positions) -> int:
    if positions.rule not in _RULES:
        raise InterventionError(
            f"the position rule '{positions.rule}' names prompts, and a table on the device "
            f"knows only requests; use one of {sorted(_RULES)}, or the eager path"
        )
    return _RULES[positions.rule]


def _indices(positions: Positions, room: int) -> list[int]:
    """The positions that a rule lists, filled up with such as no token has."""
    spare = room - len(positions.indices)
    if spare < 0:
        raise InterventionError(
            f"a rule of {len(positions.indices)} position indices does not fit into a table of "
            f"{room}; make it with Capacity(indices=...) at least that"
        )
    return [*positions.indices, *[NO_INDEX] * spare]


def registers_of(programs: Iterable[Program], capacity: Capacity) -> dict[str, int]:
    """Register numbers of all latches that the gates of one slot's programs ask."""
    gates = [gate for p in programs for group in p.groups for gate in group.gates if gate]
    names = dict.fromkeys(gate.latch for gate in gates if gate.latch)
    if len(names) > capacity.latches:
        raise InterventionError(
            f"a slot asks for {len(names)} latches ({', '.join(names)}) in a table of "
            f"{capacity.latches} a slot; make it with Capacity(latches=...) at least that"
        )
    return {name: number for number, name in enumerate(names)}

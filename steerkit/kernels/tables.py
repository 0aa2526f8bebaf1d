"""Programs as tensors: what executors read, on the device and in the dtype they compute in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerkit.batch import Positions
from steerkit.errors import InterventionError
from steerkit.kernels.gates import Gates, gates_of
from steerkit.kernels.stack import Stack
from steerkit.program import Group, Latch, Opcode, Program


@dataclass(frozen=True, eq=False)
class Rules:
    """Which position rule each term of a group follows.

    `which[..., term]` counts into `distinct`; -1 means never (programs of different lengths
    side by side). One rule for every term is by far the commonest case: then `which` is None.
    """

    distinct: tuple[Positions, ...]
    which: Int[Tensor, "*row term"] | None
    rows: tuple[Int[Tensor, "some"] | None, ...]
    """Rows that follow each rule, None for all: a token mask is asked about its own rows only."""

    def active(
        self,
        absolute: Int[Tensor, "row pos"],
        prompt_len: Int[Tensor, "row"],
        row: Int[Tensor, "row"],
    ) -> Bool[Tensor, "row pos term_or_1"]:
        """True where a term acts; one column for all terms where they share a rule."""
        if self.which is None:
            return self.distinct[0].select(absolute, prompt_len, row)[..., None]
        every = absolute.new_zeros((len(self.distinct) + 1, *absolute.shape), dtype=torch.bool)
        for i, (rule, rows) in enumerate(zip(self.distinct, self.rows, strict=True)):
            if rows is None:
                every[i] = rule.select(absolute, prompt_len, row)
            else:
                every[i, rows] = rule.select(absolute[rows], prompt_len[rows], row[rows])
        if self.which.ndim == 1:
            return every[self.which].movedim(0, -1)
        here = torch.arange(absolute.shape[0], device=absolute.device)
        return every[self.which, here[:, None]].movedim(1, -1)


@dataclass(frozen=True, eq=False)
class Terms:
    """One group, ready to run: for all rows alike, or with a leading row axis.

    `h @ read.T + bias` is the coefficient of an affine term and the read p of those with a
    rule of their own; for a constant term `read` is 0 and `bias` its coefficient, and for one
    that keeps the norm both are 0. `low` and `high` are the edges of clamps, and without an
    edge elsewhere; `x`, `y`, `z` are the parameters of terms with a rule, always finite: what
    is not chosen must not be infinite either, or its gradient is no number.
    """

    read: Float[Tensor, "*row term d_model"]
    bias: Float[Tensor, "*row_1 term"]
    write: Float[Tensor, "*row term d_model"]
    low: Float[Tensor, "*row_1 term"]
    high: Float[Tensor, "*row_1 term"]
    x: Float[Tensor, "*row_1 term"]
    y: Float[Tensor, "*row_1 term"]
    z: Float[Tensor, "*row_1 term"]
    where: Mapping[Opcode, Bool[Tensor, "*row_1 term"]]
    """The terms of each opcode that there is."""
    partner: Int[Tensor, "*row_1 term"] | None
    """Number of the other term of a pair (its own for terms without one); None without pairs."""
    keeping: tuple[int, ...]
    """Terms that keep the norm in some row."""
    rules: Rules
    gates: Gates | None
    kinds: frozenset[Opcode]
    shift: Float[Tensor, "*row_1 d_model"] | None
    """bias @ write, where nothing is read and all terms act at the same tokens."""


@dataclass(frozen=True, eq=False)
class PackedSite:
    """The programs of one site, one a slot; slot 0 is none. Built by `pack`."""

    slots: tuple[tuple[Group, ...], ...]
    latches: tuple[tuple[Latch, ...], ...]
    """Conditions that are decided here, by slot; none at all where no slot has any."""
    d_model: int | None
    """Width of the stream the programs were made for; None where all are empty."""
    gated: bool
    """Whether some term has a gate."""
    device: torch.device
    dtype: torch.dtype
    """What coefficients are computed in: float64 for float64 streams, else float32."""

    def check_slots(self, slots: Sequence[int]) -> None:
        """Refuse a row that points outside the table."""
        last = len(self.slots) - 1
        if slots and not 0 <= min(slots) <= max(slots) <= last:
            row, slot = next((r, s) for r, s in enumerate(slots) if not 0 <= s <= last)
            raise InterventionError(
                f"row {row} asks for program slot {slot}; this model has slots "
                f"0..{last} (0 = unsteered)"
            )

    def terms(self, slots: tuple[int, ...]) -> tuple[Terms, ...]:
        """The groups that rows at these (non-empty) slots run, in order.

        If all rows share a slot there is no row axis, and nothing is gathered per row.
        """
        return _terms(self, slots[:1] if len(set(slots)) == 1 else slots)


def pack(programs: Sequence[Program], device: torch.device | str, dtype: torch.dtype) -> PackedSite:
    """The programs of a site (one a slot, entry 0 empty) for streams of `dtype` on `device`.

    Cached by the identity of the programs, so that calling it before every run is cheap.
    """
    if not programs or programs[0]:
        raise InterventionError("slot 0 is the empty program; put programs at slots 1 and above")
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    # Empty programs are made afresh by tables; as None they cannot miss the cache.
    return _pack(tuple(p if p else None for p in programs), torch.device(device), compute)


@lru_cache(maxsize=1024)
def _pack(
    programs: tuple[Program | None, ...], device: torch.device, dtype: torch.dtype
) -> PackedSite:
    slots = tuple(
        tuple(group for group in program.groups if len(group)) if program else ()
        for program in programs
    )
    widths = sorted({group.d_model for groups in slots for group in groups})
    if len(widths) > 1:
        raise InterventionError(f"programs at one site have different widths: {widths}")
    latches = tuple(program.latches if program else () for program in programs)
    return PackedSite(
        slots=slots,
        latches=latches if any(latches) else (),
        d_model=widths[0] if widths else None,
        gated=any(gate for groups in slots for group in groups for gate in group.gates),
        device=device,
        dtype=dtype,
    )


# Rows of different slots cost row x term x d_model each, so these are bounded tighter.
@lru_cache(maxsize=256)
def _terms(packed: PackedSite, slots: tuple[int, ...]) -> tuple[Terms, ...]:
    # A tensor made under inference_mode could never be saved for a later backward pass.
    with torch.inference_mode(False), torch.no_grad():
        depth = max(len(packed.slots[slot]) for slot in slots)
        return tuple(
            _build([next(iter(packed.slots[slot][i : i + 1]), None) for slot in slots], packed)
            for i in range(depth)
        )


def _build(groups: Sequence[Group | None], packed: PackedSite) -> Terms:
    """The i-th groups of all rows side by side; a single one has no row axis."""
    live = {id(group): group for group in groups if group is not None}.values()
    kinds = frozenset(op for group in live for op in group.opcodes)
    stack = Stack(groups, packed.device, packed.dtype)
    rules = _rules(groups, packed.device)
    gates = gates_of(groups, stack)
    still = rules.which is None and gates is None and kinds == {Opcode.CONSTANT}
    bias, write = stack(_bias), stack(lambda group: group.write)
    read, opcodes = stack(_read), stack(lambda group: torch.tensor(group.opcodes), -1).long()
    partner = stack(_partner).long() if Opcode.TURN in kinds else None
    x, y, z = (stack(_column(i)) for i in range(3))
    keeping = {j for group in live for j, op in enumerate(group.opcodes) if op == Opcode.KEEP_NORM}
    return Terms(
        read=read,
        bias=bias,
        write=write,
        low=stack(_edge(0), -torch.inf),
        high=stack(_edge(1), torch.inf),
        x=x,
        y=y,
        z=z,
        where={opcode: opcodes == opcode for opcode in kinds},
        partner=partner,
        keeping=tuple(sorted(keeping)),
        rules=rules,
        gates=gates,
        kinds=kinds,
        shift=bias @ write if still else None,
    )


def _column(i: int) -> Callable[[Group], Float[Tensor, "term"]]:
    """A parameter of every term; 0 where it is the edge of a clamp."""

    def column(group: Group) -> Float[Tensor, "term"]:
        edges = torch.tensor(group.opcodes) == Opcode.CLAMP
        return group.params[:, i].double().masked_fill(edges & (i < 2), 0)

    return column


def _edge(i: int) -> Callable[[Group], Float[Tensor, "term"]]:
    """An edge of every clamp; infinite for other terms."""

    def edge(group: Group) -> Float[Tensor, "term"]:
        others = torch.tensor(group.opcodes) != Opcode.CLAMP
        return group.params[:, i].double().masked_fill(others, (-torch.inf, torch.inf)[i])

    return edge


def _gain(group: Group) -> Float[Tensor, "term"]:
    """What is affine in h is folded into the read; other reads stand as they are."""
    opcode = torch.tensor(group.opcodes)
    still = (opcode == Opcode.CONSTANT) | (opcode == Opcode.KEEP_NORM)
    x = group.params[:, 0].double()
    return torch.where(opcode == Opcode.AFFINE, x, 1.0).masked_fill(still, 0)


def _read(group: Group) -> Float[Tensor, "term d_model"]:
    return _gain(group)[:, None] * group.read.double()


def _bias(group: Group) -> Float[Tensor, "term"]:
    opcode, (x, y, _) = torch.tensor(group.opcodes), group.params.double().unbind(1)
    added = torch.where(opcode == Opcode.CONSTANT, x, torch.where(opcode == Opcode.AFFINE, y, 0.0))
    return added - _gain(group) * group.offset


def _partner(group: Group) -> Int[Tensor, "term"]:
    own = torch.arange(len(group))
    turns = torch.tensor(group.opcodes) == Opcode.TURN
    return torch.where(turns, own + group.params[:, 1].long(), own)


def _rules(groups: Sequence[Group | None], device: torch.device) -> Rules:
    """The distinct position rules of all terms, and who follows which."""
    followers: dict[Positions, set[int]] = {}
    width = max(len(group) for group in groups if group is not None)
    which = torch.full((len(groups), width), -1)
    for row, group in enumerate(groups):
        for term, rule in enumerate(group.positions if group is not None else ()):
            followers.setdefault(rule, set()).add(row)
            which[row, term] = list(followers).index(rule)
    everyone = len(groups)
    return Rules(
        tuple(followers),
        None if bool((which == 0).all()) else (which[0] if everyone == 1 else which).to(device),
        tuple(
            None if len(rows) == everyone else torch.tensor(sorted(rows), device=device)
            for rows in followers.values()
        ),
    )

"""Programs as tensors: what executors read, on the device and in the dtype they compute in."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerkit.batch import Positions
from steerkit.errors import InterventionError
from steerkit.program import Group, Opcode, Program


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

    `h @ read.T + bias` is the coefficient of an affine term and the read p of a clamp; for a
    constant term `read` is 0 and `bias` its coefficient.
    """

    read: Float[Tensor, "*row term d_model"]
    bias: Float[Tensor, "*row_1 term"]
    write: Float[Tensor, "*row term d_model"]
    constant: Bool[Tensor, "*row_1 term"]
    clamps: Bool[Tensor, "*row_1 term"]
    low: Float[Tensor, "*row_1 term"]
    high: Float[Tensor, "*row_1 term"]
    mix: Float[Tensor, "*row_1 term"]
    rules: Rules
    kinds: frozenset[Opcode]
    shift: Float[Tensor, "*row_1 d_model"] | None
    """bias @ write, where nothing is read and all terms act at the same tokens."""


@dataclass(frozen=True, eq=False)
class PackedSite:
    """The programs of one site, one a slot; slot 0 is none. Built by `pack`."""

    slots: tuple[tuple[Group, ...], ...]
    device: torch.device
    dtype: torch.dtype
    """What coefficients are computed in: float64 for float64 streams, else float32."""

    @property
    def d_model(self) -> int | None:
        """Width of the stream the programs were made for; None where all are empty."""
        return next((groups[0].d_model for groups in self.slots if groups), None)

    def check_slots(self, slots: Sequence[int]) -> None:
        """Refuse a row that points outside the table."""
        for row, slot in enumerate(slots):
            if not 0 <= slot < len(self.slots):
                raise InterventionError(
                    f"row {row} asks for program slot {slot}; this model has slots "
                    f"0..{len(self.slots) - 1} (0 = unsteered)"
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
    return PackedSite(slots, device, dtype)


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
    live = [group for group in groups if group is not None]
    kinds = frozenset(op for group in {id(g): g for g in live}.values() for op in group.opcodes)
    rules = _rules(groups, packed.device)
    width = max(len(group) for group in live)
    # Thousands of rows may share a few programs: each is looked at once, then gathered.
    distinct = {id(group): group for group in groups}
    number = {key: i for i, key in enumerate(distinct)}
    which = torch.tensor([number[id(group)] for group in groups], device=packed.device)
    folded = [_folded(group) if group is not None else {} for group in distinct.values()]

    def stacked(field: str, fill: float = 0.0) -> Tensor:
        """[row term ...] in the dtype of the computation, short rows filled up."""
        shape = next(fields for fields in folded if fields)[field].shape[1:]
        out = torch.full((len(folded), width, *shape), fill, dtype=torch.float64)
        for i, fields in enumerate(folded):
            if fields:
                out[i, : len(fields[field])] = fields[field]
        out = out.to(packed.device, packed.dtype)
        if len(groups) == 1:
            return out[0]
        out = out[which]
        # [row 1 term], so that numbers meet coefficients [row pos term].
        return out if shape else out[:, None]

    still = rules.which is None and kinds == {Opcode.CONSTANT}
    bias, write = stacked("bias"), stacked("write")
    return Terms(
        read=stacked("read"),
        bias=bias,
        write=write,
        constant=stacked("constant").bool(),
        clamps=stacked("clamps").bool(),
        low=stacked("low", -torch.inf),
        high=stacked("high", torch.inf),
        mix=stacked("mix"),
        rules=rules,
        kinds=kinds,
        shift=bias @ write if still else None,
    )


def _folded(group: Group) -> dict[str, Tensor]:
    """The fields of `Terms` for one group, in float64 on the CPU."""
    x, y, z = group.params.double().unbind(1)
    opcode = torch.tensor(group.opcodes)
    known = (Opcode.CONSTANT, Opcode.AFFINE, Opcode.CLAMP)
    constant, affine, clamp = (opcode == op for op in known)
    zero, infinity = torch.zeros_like(x), torch.full_like(x, torch.inf)
    gain = torch.where(affine, x, torch.where(clamp, 1.0, zero))
    return {
        "read": gain[:, None] * group.read.double(),
        "bias": torch.where(constant, x, torch.where(affine, y, zero)) - gain * group.offset,
        "write": group.write.double(),
        "constant": constant,
        "clamps": clamp,
        "low": torch.where(clamp, x, -infinity),
        "high": torch.where(clamp, y, infinity),
        "mix": torch.where(clamp, z, zero),
    }


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

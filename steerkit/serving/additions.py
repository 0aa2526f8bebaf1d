"""Sites where programs only add: what each token gets is looked up, and summed in one step.

By far the commonest programs, and a pass of a small model takes as long as a few hundred calls
into torch. Which tokens get what is the same question at every site whose programs follow the
same rules, so it is answered once a pass, and while the same requests decode, once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerkit.batch import Positions
from steerkit.program import Group, Opcode, Program


@dataclass(frozen=True)
class Stretch:
    """The tokens of one request in a pass: its number, and where they stand in it."""

    request: int
    start: int
    length: int


@dataclass(frozen=True)
class When:
    """When all that a program adds at a site is added: one position rule, and one latch or none."""

    rule: Positions
    latch: str = ""

    def within(self, stretch: Stretch, prompt_len: int) -> range | list[int]:
        """The tokens of a stretch that get it, counted from the stretch's first."""
        # Terms that a latch gates never act before the last token of the prompt.
        first = max(0, prompt_len - 1 - stretch.start) if self.latch else 0
        end, rule = prompt_len - stretch.start, self.rule.rule
        if rule == "all":
            return range(first, stretch.length)
        if rule == "generated":
            return range(max(first, end), stretch.length)
        if rule == "prompt":
            return range(first, min(end, stretch.length))
        if rule == "last_prompt":
            return range(max(first, end - 1), min(end, stretch.length))
        counted = {i if i >= 0 else prompt_len + i for i in self.rule.indices}
        return sorted(
            i - stretch.start for i in counted if first <= i - stretch.start < stretch.length
        )


@dataclass(frozen=True, eq=False)
class Rows:
    """The slots that add something at a site, and when each does. Equal ones are one object."""

    when: tuple[tuple[int, When], ...]

    def choose(
        self,
        stretches: Sequence[Stretch],
        slots: Sequence[int],
        prompt_len: Sequence[int],
        opened: Callable[[str, int], bool],
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens of a packed stream that get something, and the row of each one's vector.

        Args:
            stretches: in the order of the stream.
            slots: of each request.
            prompt_len: of each request.
            opened: (latch, request) -> whether it was decided that the latch is open.
        """
        row = {slot: (i, when) for i, (slot, when) in enumerate(self.when)}
        tokens: list[int] = []
        which: list[int] = []
        first = 0
        for stretch in stretches:
            found = row.get(slots[stretch.request])
            if found is not None:
                number, when = found
                mine = when.within(stretch, prompt_len[stretch.request])
                if mine and (not when.latch or opened(when.latch, stretch.request)):
                    tokens += [first + i for i in mine]
                    which += [number] * len(mine)
            first += stretch.length
        return tuple(tokens), tuple(which)


@dataclass(frozen=True, eq=False)
class Chosen:
    """Which tokens of a pass get which vectors."""

    tokens: tuple[int, ...]
    which: tuple[int, ...]
    length: int
    """Of the stream."""
    index: Int[Tensor, "some"] | None
    """The tokens; None for all of them, in order."""
    rows: Int[Tensor, "some"]

    @classmethod
    def of(cls, tokens: tuple[int, ...], which: tuple[int, ...], length: int) -> "Chosen":
        """In a stream of `length` tokens."""
        index = None if len(tokens) == length else torch.tensor(tokens)
        return cls(tokens, which, length, index, torch.tensor(which, dtype=torch.long))


class Additions:
    """What is added at one site, where no more is done than adding and deciding latches."""

    def __init__(
        self, rows: Rows, vectors: Float[Tensor, "row d_model"], *, deciding: bool
    ) -> None:
        self.rows = rows
        self.deciding = deciding
        """Whether latches are decided here, which is not done here."""
        self._vectors = vectors
        self._last: tuple[Chosen | None, Tensor] = None, vectors

    def add(
        self, stream: Float[Tensor, "one token d_model"], chosen: Chosen
    ) -> Float[Tensor, "one token d_model"]:
        """The stream with each token's vector added; tokens without one keep their bits."""
        if not chosen.which:
            return stream
        known, added = self._last
        if known is not chosen:
            added = self._vectors.index_select(0, chosen.rows)[None]
            self._last = chosen, added
        if chosen.index is None:
            return stream + added
        return stream.index_add(1, chosen.index, added)


def additions(
    programs: tuple[Program, ...], slots: Sequence[int], device: torch.device, dtype: torch.dtype
) -> Additions | None:
    """What these slots add at a site; None where something else is done, or cannot be done so.

    On an accelerator choosing tokens would have to be waited for, and half precision is rounded
    once, after a sum in float32.
    """
    if device.type != "cpu" or dtype not in (torch.float32, torch.float64):
        return None
    live = tuple(sorted({slot for slot in slots if programs[slot]}))
    found = _found(tuple(programs[slot] for slot in live), live, dtype)
    if found is None:
        return None
    # Each call remembers its own last pass.
    return Additions(*found, deciding=any(programs[slot].latches for slot in live))


@lru_cache(maxsize=256)
def _found(
    programs: tuple[Program, ...], slots: tuple[int, ...], dtype: torch.dtype
) -> tuple[Rows, Tensor] | None:
    adding = {slot: acting(program) for slot, program in zip(slots, programs, strict=True)}
    adding = {slot: groups for slot, groups in adding.items() if groups}
    whens = {slot: when_adding(groups) for slot, groups in adding.items()}
    if not adding or None in whens.values():
        return None
    sums = [added(groups) for groups in adding.values()]
    # A tensor made under inference_mode could never be saved for a later backward pass.
    with torch.inference_mode(False):
        vectors = torch.stack(sums).to(dtype)
    return _rows(tuple((slot, when) for slot, when in whens.items() if when)), vectors


def acting(program: Program) -> tuple[Group, ...]:
    """The groups of a program that do anything."""
    return tuple(group for group in program.groups if len(group))


def when_adding(groups: Sequence[Group]) -> When | None:
    """When these add; None where they do more, or not everything at the same tokens."""
    found = set()
    for group in groups:
        for opcode, rule, gate in zip(
            group.opcodes, group.positions, group.every_gate, strict=True
        ):
            if opcode != Opcode.CONSTANT or rule.rule == "mask" or (gate and not gate.latch):
                return None
            found.add(When(rule, gate.latch if gate else ""))
    return found.pop() if len(found) == 1 else None


def added(groups: Sequence[Group]) -> Float[Tensor, "d_model"]:
    """All that groups add which do no more, in float64: additions read nothing of one another."""
    return torch.stack([g.params[:, 0].double() @ g.write.double() for g in groups]).sum(0)


# One object for equal ones: sites know by it that their tokens were chosen already.
@lru_cache(maxsize=256)
def _rows(when: tuple[tuple[int, When], ...]) -> Rows:
    return Rows(when)

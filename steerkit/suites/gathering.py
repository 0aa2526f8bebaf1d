"""Prompts by role, gathered from files, lists and public sets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from steerkit.datasets import read_prompts
from steerkit.errors import PromptError
from steerkit.layouts import read_file
from steerkit.prompts import Contrast, Prompt
from steerkit.registry import suggest
from steerkit.suites.material import ROLES
from steerkit.suites.sources import SETS, Brought

Given = Contrast | Sequence[Any] | str | Path
"""Prompts, a file of them, or `SET:SOURCE`; of a contrast also a tuple of its two sides."""
SIDES = ("positive", "negative")


class Cell(NamedTuple):
    """One side of a role, or all of a one-sided one, and where it came from."""

    origin: str
    prompts: tuple[Prompt, ...]
    whole: Contrast | None
    said: bool
    """Whether it was given for this role by name, which goes before what a set brings."""


def gathered(given: Mapping[str, Given]) -> dict[str, Brought]:
    """Contrasts and prompts by role.

    Args:
        given: by role, by side of a role (`refusal.positive`), or by public set, which then
            brings every role that it plays.

    Raises:
        PromptError: an unknown role or set, nothing to be read, a side that is missing, or two
            sets that bring the same.
    """
    cells: dict[str, dict[str, Cell]] = {}
    for key in sorted(given, key=lambda name: name in SETS):
        value = given[key]
        if key in SETS:
            if not isinstance(value, str | Path):
                raise PromptError(f"{key} takes a path or a hub name; got {type(value).__name__}")
            for place, brought in SETS[key].brings(value).items():
                _put(cells, place, brought, Cell(key, (), None, False))
            continue
        _placed(key)
        if isinstance(value, tuple) and len(value) == 2 and ROLES.get(key, ("",))[0] == "contrast":
            for side, part in zip(SIDES, value, strict=True):
                place = f"{key}.{side}"
                _put(cells, place, _read(part, place), Cell(place, (), None, True))
        else:
            _put(cells, key, _read(value, key), Cell(key, (), None, True))
    return {role: _whole(role, sides) for role, sides in cells.items()}


def _placed(key: str) -> tuple[str, str]:
    """Role and side of a key; the side is empty for all of a role.

    Raises:
        PromptError: no such role, or a side of a role that has none.
    """
    role, dot, side = key.partition(".")
    if role not in ROLES:
        known = (*ROLES, *SETS)
        raise PromptError(f"'{role}' is no role and no public set; {suggest(role, known)}")
    if dot and (ROLES[role][0] != "contrast" or side not in SIDES):
        can = ", ".join(f"{role}.{s}" for s in SIDES) if ROLES[role][0] == "contrast" else role
        raise PromptError(f"there is no '{key}'; of this role there is: {can}")
    return role, side


def _put(cells: dict[str, dict[str, Cell]], place: str, brought: Brought, cell: Cell) -> None:
    """Put what was brought in its place.

    Raises:
        PromptError: something is there that was not given by name.
    """
    role, side = _placed(place)
    sides: dict[str, Cell] = {}
    if isinstance(brought, Contrast):
        sides = {s: cell._replace(prompts=getattr(brought, s), whole=brought) for s in SIDES}
    else:
        sides[side] = cell._replace(prompts=brought)
    there = cells.setdefault(role, {})
    for name, new in sides.items():
        old = there.get(name)
        if old is not None and (new.said or not old.said):
            called = f"{role}.{name}" if name else role
            raise PromptError(
                f"{old.origin} and {new.origin} both bring '{called}'; say which one by {called}="
            )
        there.setdefault(name, new)


def _whole(role: str, sides: Mapping[str, Cell]) -> Brought:
    """The sides of a role together.

    Raises:
        PromptError: a side is missing.
    """
    if ROLES[role][0] == "prompts":
        return sides[""].prompts
    missing = [side for side in SIDES if side not in sides]
    if missing:
        there = next(iter(sides.values())).origin
        raise PromptError(
            f"the role '{role}' has one side only, from {there}; give {role}.{missing[0]}= as well"
        )
    one, other = (sides[side] for side in SIDES)
    if one.whole is not None and one.whole is other.whole:
        return one.whole
    return Contrast.of(one.prompts, other.prompts, name=role)


def _read(value: Given, place: str) -> Brought:
    """What was given for a role or a side of it.

    Raises:
        PromptError: it cannot be read, or is a set that does not play this role.
    """
    role, side = _placed(place)
    whole = ROLES[role][0] == "contrast" and not side
    if isinstance(value, Contrast):
        if not whole:
            raise PromptError(f"'{place}' takes prompts of one side; got a contrast")
        return value
    if isinstance(value, str | Path):
        name, colon, source = str(value).partition(":")
        if not Path(value).exists() and (colon or name in SETS):
            return _of_set(name, source, role, side)
        if whole:
            return Contrast.read(value, name=role)
        file = Path(value)
        rows = read_file(file) if file.suffix == ".csv" else read_prompts(file)
    elif whole:
        return Contrast.read(value, name=role)
    else:
        rows = list(value)
    if not rows:
        raise PromptError(f"'{place}' is empty; give at least one prompt")
    return tuple(Prompt.of(row) for row in rows)


def _of_set(name: str, source: str, role: str, side: str) -> Brought:
    """The part of a public set that plays a role."""
    if name not in SETS:
        raise PromptError(f"no public set named '{name}'; {suggest(name, SETS)}")
    found = SETS[name]
    if not source:
        raise PromptError(f"'{name}' needs a source: {name}:PATH; to be had from {found.home}")
    place = f"{role}.{side}" if side else role
    plays = {played.partition(".")[0] for played in found.roles}
    brought = found.brings(source) if role in plays else {}
    if place in brought:
        return brought[place]
    both = brought.get(role)
    if side and isinstance(both, Contrast):
        prompts: tuple[Prompt, ...] = getattr(both, side)
        return prompts
    sides = {s: brought.get(f"{role}.{s}") for s in SIDES}
    one, other = sides["positive"], sides["negative"]
    if isinstance(one, tuple) and isinstance(other, tuple) and not side:
        return Contrast.of(one, other, name=role)
    raise PromptError(f"{found.title} does not bring '{place}'; it plays: {', '.join(found.roles)}")

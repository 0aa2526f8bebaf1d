"""What a search tries: every direction under every operator, position rule and strength."""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from steerkit.batch import Positions
from steerkit.direction import Direction
from steerkit.errors import DirectionError, InterventionError
from steerkit.interventions import OPERATORS
from steerkit.protocols import Intervention

Aim = Literal["reduce", "induce"]
AIMS: tuple[Aim, ...] = ("reduce", "induce")
Factory = Callable[..., Intervention]
"""`factory(direction, positions=..., strength=...)`, and `reference=...` if it has that."""

ADDITIONS = (0.5, 1.0, 1.5, 2.0, 3.0)
"""Default strengths of an addition, in class gaps; negative where the aim is to reduce."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One thing to try, with what it takes to make it again with another vector."""

    direction: Direction
    operator: str
    reference: str
    """What the operator moves to (`zero`, `negative_mean`, ...), or empty where it has none."""
    positions: Positions
    strength: float
    make: Callable[[Direction], Intervention]

    @property
    def intervention(self) -> Intervention:
        """The intervention itself."""
        return self.make(self.direction)

    def with_direction(self, direction: Direction) -> Intervention:
        """The same operator, rule and strength with another vector."""
        return self.make(direction)

    def __str__(self) -> str:
        how = f" to {self.reference}" if self.reference else ""
        return f"{self.operator}{how} {self.direction} x{self.strength:g} ({self.positions})"


@dataclass(frozen=True)
class Operation:
    """An operator that a search may use: how it is made, and what it can be varied in."""

    name: str
    make: Factory
    has_reference: bool
    strengths: tuple[float, ...]

    def candidates(
        self,
        direction: Direction,
        positions: Sequence[Positions],
        references: Sequence[str],
        strengths: Sequence[float] | None,
    ) -> list[Candidate]:
        """This operator with one direction, in every variation."""
        return [
            Candidate(
                direction,
                self.name,
                reference,
                rule,
                strength,
                self._maker(reference, rule, strength),
            )
            for reference in (references if self.has_reference else ("",))
            for rule in positions
            for strength in (self.strengths if strengths is None else strengths)
        ]

    def _maker(
        self, reference: str, rule: Positions, strength: float
    ) -> Callable[[Direction], Intervention]:
        extra = {"reference": reference} if reference else {}

        def make(direction: Direction) -> Intervention:
            return self.make(direction, positions=rule, strength=strength, **extra)

        return make


def every_candidate(
    directions: Iterable[Direction],
    intervene: "str | Factory | Sequence[str | Factory]",
    *,
    aim: Aim,
    strengths: Sequence[float] | None = None,
    positions: Sequence[Positions | str] = ("all", "last_prompt"),
    references: Sequence[str] = ("zero", "negative_mean"),
) -> list[Candidate]:
    """All candidates, in forward order of their sites.

    Args:
        directions: one or several at each site.
        intervene: operators: classes, registered names, or factories.
        aim: decides the sign of default strengths and the side of a one-sided clamp.
        strengths: replaces each operator's default strengths.
        positions: position rules; a token mask belongs to fixed prompts and is refused.
        references: tried for operators that have a reference point.

    Raises:
        DirectionError: no directions.
        InterventionError: an unknown operator, rule or reference, strengths not finite.
    """
    listed = tuple(directions)
    if not listed:
        raise DirectionError("there are no directions to search over; extract some first")
    chosen = _finite(strengths)
    rules = [Positions.of(rule) for rule in _several("positions", positions)]
    if any(rule.rule == "mask" for rule in rules):
        raise InterventionError(
            "a search tries position rules, not a token mask, which belongs to fixed prompts; "
            "use rules such as 'all', 'prompt', 'last_prompt', 'generated'"
        )
    single = isinstance(intervene, str) or callable(intervene)
    operators: Sequence[Any] = (intervene,) if single else _several("operators", intervene)
    operations = [operation(one, aim) for one in operators]
    found = [
        candidate
        for direction in sorted(listed, key=lambda d: (d.site.order, d.method))
        for one in operations
        for candidate in one.candidates(
            direction, rules, _several("references", references), chosen
        )
    ]
    for candidate in found[: len(found) // len(listed)]:
        # Bad references and strengths show now, not after minutes of searching.
        candidate.intervention.lower(candidate.intervention.sites[0])
    return found


def operation(intervene: "str | Factory", aim: Aim) -> Operation:
    """What a search knows about an operator, given by class, registered name or factory."""
    make: Any = OPERATORS[intervene] if isinstance(intervene, str) else intervene
    if not callable(make) or isinstance(make, Direction):
        raise InterventionError(
            f"an operator is a class such as Ablate, a registered name, or a factory "
            f"(direction, positions, strength) -> intervention; got a {type(make).__name__}"
        )
    name = getattr(make, "name", None) or getattr(make, "__name__", type(make).__name__)
    sign = -1.0 if aim == "reduce" else 1.0
    if name == "add":
        return Operation("add", make, False, tuple(sign * s for s in ADDITIONS))
    if name == "clamp":
        return Operation("clamp", _one_sided(make, aim), False, (1.0,))
    taken = inspect.signature(make).parameters
    return Operation(str(name), make, "reference" in taken, (1.0,))


def _one_sided(clamp: Factory, aim: Aim) -> Factory:
    """A clamp at the class mean that the aim is to reach: it moves no token already beyond."""

    def make(direction: Direction, **settings: Any) -> Intervention:
        bound = {"high": "negative_mean"} if aim == "reduce" else {"low": "positive_mean"}
        return clamp(direction, **bound, **settings)

    return make


def _finite(strengths: Sequence[float] | None) -> tuple[float, ...] | None:
    if strengths is None:
        return None
    values = _several("strengths", strengths)
    bad = [s for s in values if isinstance(s, str) or not math.isfinite(s)]
    if bad:
        raise InterventionError(
            f"strengths are finite numbers; got {bad[0]!r} among {list(values)}"
        )
    if any(s == 0 for s in values):
        raise InterventionError(
            "strength 0 is the unsteered model, which every search measures anyway; leave it out"
        )
    return tuple(float(s) for s in values)


def _several(name: str, values: Any) -> tuple[Any, ...]:
    found = (values,) if isinstance(values, str | int | float | Positions) else tuple(values)
    if not found:
        raise InterventionError(f"no {name} to try; give at least one")
    return found

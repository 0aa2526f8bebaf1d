"""Clamping the projection to an interval."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from steerkit.batch import Positions
from steerkit.direction import Direction
from steerkit.errors import InterventionError
from steerkit.interventions.level import Level, check_level, projection
from steerkit.interventions.operator import (
    OPERATORS,
    Operator,
    PositionsLike,
    SitesLike,
    place,
    terms,
    units,
)
from steerkit.program import Group, Opcode
from steerkit.site import Site


@OPERATORS.register("clamp")
@dataclass(frozen=True, init=False, eq=False)
class Clamp(Operator):
    """Move the projection p on the direction to the nearest point of [low, high].

    One edge may be left out. Tokens whose projection already lies inside are not changed,
    which makes a one-sided clamp the gentlest way to keep a concept out (or in).

    Args:
        direction: the direction that is read and written.
        low: lower edge: `zero`, `negative_mean`, `positive_mean`, a projection in activation
            units, or None for no edge.
        high: upper edge, likewise.
        strength: the fraction of the way from p to the clamped projection.
        positions: the tokens it acts on.
        sites: where it acts; the direction's own site by default. Class means are those of
            the direction's own site wherever it acts.

    Raises:
        InterventionError: no edge at all, an unknown one, or low above high.
    """

    name: ClassVar[str] = "clamp"

    direction: Direction
    low: Level | None
    high: Level | None
    strength: float
    positions: Positions
    sites: tuple[Site, ...]

    def __init__(
        self,
        direction: Direction,
        low: Level | None = None,
        high: Level | None = None,
        strength: float = 1.0,
        positions: PositionsLike = "all",
        sites: SitesLike = None,
    ) -> None:
        place(self, [direction], strength, positions, sites)
        if low is None and high is None:
            raise InterventionError(
                "a clamp needs an edge: low, high or both; such as high='negative_mean'"
            )
        object.__setattr__(self, "direction", direction)
        object.__setattr__(self, "low", None if low is None else check_level("low edge", low))
        object.__setattr__(self, "high", None if high is None else check_level("high edge", high))
        bottom, top = self.edges
        if bottom > top:
            raise InterventionError(
                f"the low edge of a clamp lies above the high one: {low} is {bottom:.4g} and "
                f"{high} is {top:.4g} along {direction.concept}; swap them"
            )

    @property
    def directions(self) -> tuple[Direction, ...]:
        """The one direction."""
        return (self.direction,)

    @property
    def settings(self) -> dict[str, Any]:
        """Both edges, as given."""
        return {"low": self.low, "high": self.high}

    @property
    def edges(self) -> tuple[float, float]:
        """Both edges as projections in activation units; infinite where there is none."""
        low = -math.inf if self.low is None else projection(self.low, self.direction)
        high = math.inf if self.high is None else projection(self.high, self.direction)
        return low, high

    def group(self) -> Group:
        """The way to the nearest point inside, c = strength * (clip(p, low, high) - p)."""
        low, high = self.edges
        return terms(self, Opcode.CLAMP, units(self.directions), [(low, high, self.strength)])

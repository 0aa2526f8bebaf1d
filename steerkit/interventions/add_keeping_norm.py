"""Activation addition that keeps the norm of the stream."""

from dataclasses import dataclass
from typing import Any, ClassVar

from steerkit.batch import Positions
from steerkit.direction import Direction
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


@OPERATORS.register("add_keeping_norm")
@dataclass(frozen=True, init=False, eq=False)
class AddKeepingNorm(Operator):
    """Add the steering vector, then shrink to the norm from before: |h| (h + v) / |h + v|.

    With v = strength * scale * unit. The stream turns towards the direction and never grows,
    so that a strong push does not leave the range that later layers know. The strength is
    the amount that is added; half of it is not half of the way.

    Args:
        direction: what to add.
        strength: in multiples of the direction's scale.
        positions: the tokens it acts on.
        sites: where it acts; the direction's own site by default.
    """

    name: ClassVar[str] = "add_keeping_norm"

    direction: Direction
    strength: float
    positions: Positions
    sites: tuple[Site, ...]

    def __init__(
        self,
        direction: Direction,
        strength: float = 1.0,
        positions: PositionsLike = "all",
        sites: SitesLike = None,
    ) -> None:
        object.__setattr__(self, "direction", direction)
        place(self, [direction], strength, positions, sites)

    @property
    def directions(self) -> tuple[Direction, ...]:
        """The one direction."""
        return (self.direction,)

    @property
    def settings(self) -> dict[str, Any]:
        """None."""
        return {}

    def group(self) -> Group:
        """One term that adds along the unit and scales the stream."""
        amount = self.strength * self.direction.scale
        return terms(self, Opcode.KEEP_NORM, units(self.directions), [(amount, 0.0, 0.0)])

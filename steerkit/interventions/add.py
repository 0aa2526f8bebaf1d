"""Activation addition."""

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


@OPERATORS.register("add")
@dataclass(frozen=True, init=False, eq=False)
class Add(Operator):
    """Add the steering vector: h + strength * scale * unit.

    Strength counts in gaps between the class means (`Direction.scale`): 1 moves a typical
    negative prompt to where positive ones are, -1 the other way.

    Args:
        direction: what to add.
        strength: in multiples of the direction's scale.
        positions: the tokens it acts on.
        sites: where it acts; the direction's own site by default.

    Source: Turner et al. 2023 (activation addition); Rimsky et al. 2024 (contrastive
    activation addition).
    """

    name: ClassVar[str] = "add"

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
        """A constant along the unit."""
        c = self.strength * self.direction.scale
        return terms(self, Opcode.CONSTANT, units(self.directions), [(c, 0.0, 0.0)])

"""An affine map of the projection."""

from dataclasses import dataclass
from typing import Any, ClassVar

from steerkit.batch import Positions
from steerkit.direction import Direction
from steerkit.interventions.operator import (
    OPERATORS,
    Operator,
    PositionsLike,
    SitesLike,
    finite,
    place,
    terms,
    units,
)
from steerkit.program import Group, Opcode
from steerkit.site import Site


@OPERATORS.register("affine")
@dataclass(frozen=True, init=False, eq=False)
class Affine(Operator):
    """Map the projection p on the direction to gain * p + bias * scale.

    A gain of 0 with a bias sets the projection, of 1 with a bias adds, of -1 reflects at zero.

    Args:
        direction: the direction that is read and written.
        gain: factor on the projection, without a unit.
        bias: what is added, in multiples of the direction's scale.
        strength: the fraction of the way from p to the mapped projection.
        positions: the tokens it acts on.
        sites: where it acts; the direction's own site by default.
    """

    name: ClassVar[str] = "affine"

    direction: Direction
    gain: float
    bias: float
    strength: float
    positions: Positions
    sites: tuple[Site, ...]

    def __init__(
        self,
        direction: Direction,
        gain: float,
        bias: float = 0.0,
        strength: float = 1.0,
        positions: PositionsLike = "all",
        sites: SitesLike = None,
    ) -> None:
        place(self, [direction], strength, positions, sites)
        object.__setattr__(self, "direction", direction)
        object.__setattr__(self, "gain", finite("gain", gain))
        object.__setattr__(self, "bias", finite("bias", bias))

    @property
    def directions(self) -> tuple[Direction, ...]:
        """The one direction."""
        return (self.direction,)

    @property
    def settings(self) -> dict[str, Any]:
        """Gain and bias."""
        return {"gain": self.gain, "bias": self.bias}

    def group(self) -> Group:
        """The change of the projection, c = strength * ((gain - 1) p + bias * scale)."""
        x = self.strength * (self.gain - 1)
        y = self.strength * self.bias * self.direction.scale
        return terms(self, Opcode.AFFINE, units(self.directions), [(x, y, 0.0)])

"""Rotation in the plane that two directions span."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.batch import Positions
from steerkit.direction import Direction
from steerkit.errors import InterventionError
from steerkit.interventions.operator import (
    OPERATORS,
    Operator,
    PositionsLike,
    SitesLike,
    check_independent,
    finite,
    place,
    terms,
    units,
)
from steerkit.program import Group, Opcode
from steerkit.site import Site


@OPERATORS.register("rotate")
@dataclass(frozen=True, init=False, eq=False)
class Rotate(Operator):
    """Turn the part of the stream that lies in a plane, by an angle or to an angle.

    The plane is that of two directions; angle 0 is the first one, and angles grow towards
    the second (made orthogonal to the first). What lies outside the plane does not change,
    and neither does the norm. `by=` adds to the angle of every token; `to=` gives all tokens
    one angle, so that `to=0` points along the first direction and `to=180` against it.
    To turn only tokens that already point along a direction, as the adaptive variant of
    the paper does, gate it: `.when(When(direction, above=0, measure="projection",
    on="token"))`.

    Args:
        direction: the two directions.
        by: degrees to add.
        to: degrees to end at; one of the two is given.
        strength: with `by=`, of the angle: half of it turns half as far. With `to=`, the
            fraction of the straight way from h to the result: the norm is kept at 1 alone.
        positions: the tokens it acts on.
        sites: where it acts; the directions' own site by default.

    Raises:
        InterventionError: not two directions, parallel ones, or not one angle.

    Source: Vu & Nguyen 2025, angular steering (arXiv:2510.26243).
    """

    name: ClassVar[str] = "rotate"

    direction: tuple[Direction, Direction]
    by: float | None
    to: float | None
    strength: float
    positions: Positions
    sites: tuple[Site, ...]

    def __init__(
        self,
        direction: Sequence[Direction],
        by: float | None = None,
        to: float | None = None,
        strength: float = 1.0,
        positions: PositionsLike = "all",
        sites: SitesLike = None,
    ) -> None:
        several = tuple(direction) if isinstance(direction, Sequence) else (direction,)
        place(self, several, strength, positions, sites)
        if len(several) != 2:
            raise InterventionError(
                f"rotate takes the two directions of a plane, got {len(several)}; such as a "
                "concept's and one that varies most among directions of several layers"
            )
        if (by is None) == (to is None):
            raise InterventionError(
                f"rotate takes one angle in degrees, by= or to=; got by={by} and to={to}"
            )
        check_independent("rotate between", several)
        object.__setattr__(self, "direction", several)
        object.__setattr__(self, "by", None if by is None else finite("by", by))
        object.__setattr__(self, "to", None if to is None else finite("to", to))

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Both directions."""
        return self.direction

    @property
    def settings(self) -> dict[str, Any]:
        """The angle, as given."""
        return {"by": self.by, "to": self.to}

    @property
    def basis(self) -> Float[Tensor, "2 d_model"]:
        """Orthonormal rows: the first direction, and the rest of the second."""
        first, second = units(self.directions)
        rest = second - (second @ first) * first
        return torch.stack([first, rest / rest.norm()])

    def group(self) -> Group:
        """Two affine terms for a rotation by an angle, a pair of turns for one to an angle."""
        basis = self.basis
        if self.by is not None:
            cos, sin = _circle(self.strength * self.by)
            change = torch.tensor([[cos - 1, -sin], [sin, cos - 1]], dtype=torch.float64)
            return terms(self, Opcode.AFFINE, basis, [(1.0, 0.0, 0.0)] * 2, read=change @ basis)
        assert self.to is not None
        cos, sin = _circle(self.to)
        params = [(cos, 1.0, self.strength), (sin, -1.0, self.strength)]
        return terms(self, Opcode.TURN, basis, params, read=basis)


def _circle(degrees: float) -> tuple[float, float]:
    return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

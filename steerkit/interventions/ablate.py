"""Directional ablation, towards zero or a stated reference point."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from steerkit.batch import Positions
from steerkit.direction import Direction
from steerkit.errors import InterventionError
from steerkit.interventions.level import Level, check_level, projection
from steerkit.interventions.operator import (
    OPERATORS,
    Operator,
    PositionsLike,
    SitesLike,
    check_independent,
    place,
    terms,
    units,
)
from steerkit.program import Group, Opcode
from steerkit.site import Site


@OPERATORS.register("ablate")
@dataclass(frozen=True, init=False, eq=False)
class Ablate(Operator):
    """Set the projection on the direction to a reference: h - strength * (p - reference) * unit.

    `zero` removes the component. That is neutral only where zero is: with
    `reference="negative_mean"` the projection becomes the mean of the negative class instead.
    Several directions are set together through the pseudo-inverse, so each projection ends
    at its reference exactly even where directions are not orthogonal.

    Args:
        direction: one direction, or several of one model.
        reference: `zero`, `negative_mean`, `positive_mean`, or a projection in activation units.
        strength: the fraction of the way from p to the reference; 2 reflects.
        positions: the tokens it acts on.
        sites: where it acts; the directions' own site by default. Class means are those of
            each direction's own site wherever it acts.

    Raises:
        InterventionError: an unknown reference, or directions that are of different models
            or linearly dependent.

    Source: Arditi et al. 2024, directional ablation (arXiv:2406.11717).
    """

    name: ClassVar[str] = "ablate"

    direction: Direction | tuple[Direction, ...]
    reference: Level
    strength: float
    positions: Positions
    sites: tuple[Site, ...]

    def __init__(
        self,
        direction: Direction | Sequence[Direction],
        reference: Level = "zero",
        strength: float = 1.0,
        positions: PositionsLike = "all",
        sites: SitesLike = None,
    ) -> None:
        several = tuple(direction) if isinstance(direction, Sequence) else (direction,)
        if not several:
            raise InterventionError("ablate was given no directions; give one or several")
        place(self, several, strength, positions, sites)
        object.__setattr__(self, "direction", several[0] if len(several) == 1 else several)
        object.__setattr__(self, "reference", check_level("reference", reference))
        check_independent("ablate", several)

    @property
    def directions(self) -> tuple[Direction, ...]:
        """All directions that are set together."""
        return self.direction if isinstance(self.direction, tuple) else (self.direction,)

    @property
    def settings(self) -> dict[str, Any]:
        """The reference, as given."""
        return {"reference": self.reference}

    def group(self) -> Group:
        """One affine term a direction: reads along the units, writes along their dual rows."""
        dual = torch.linalg.pinv(units(self.directions)).mT
        return terms(
            self,
            Opcode.AFFINE,
            dual,
            [(-self.strength, 0.0, 0.0)] * len(self.directions),
            offset=[projection(self.reference, d) for d in self.directions],
        )

"""A learnt low-rank edit of the stream."""

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from steerkit.batch import Positions
from steerkit.direction import Direction
from steerkit.interventions.operator import (
    OPERATORS,
    Operator,
    PositionsLike,
    SitesLike,
    matrix,
    place,
    terms,
)
from steerkit.program import Group, Opcode
from steerkit.site import Site


@OPERATORS.register("low_rank")
@dataclass(frozen=True, init=False, eq=False)
class LowRank(Operator):
    """Set what R reads to what W and b predict: h + strength * R^T (W h + b - R h).

    Where the rows of R are orthonormal, as in LoReFT, R h becomes W h + b exactly. They need
    not be: the formula is run as it stands.

    Args:
        rotation: R, `[rank d_model]`.
        weight: W, `[rank d_model]`.
        bias: b, `[rank]`; zero by default.
        strength: the fraction of the way from h to the result.
        positions: the tokens it acts on.
        sites: where it acts; there is no default.
        trained_on: fingerprint of the model it was trained on, if known; another is then refused.

    Raises:
        InterventionError: matrices of different shapes, or not finite.

    Source: Wu et al. 2024, ReFT (arXiv:2404.03592).
    """

    name: ClassVar[str] = "low_rank"

    rotation: Float[Tensor, "rank d_model"]
    weight: Float[Tensor, "rank d_model"]
    bias: Float[Tensor, "rank"]
    strength: float
    positions: Positions
    sites: tuple[Site, ...]
    trained_on: str | None

    def __init__(
        self,
        rotation: Float[Tensor, "rank d_model"],
        weight: Float[Tensor, "rank d_model"],
        bias: Float[Tensor, "rank"] | None = None,
        strength: float = 1.0,
        positions: PositionsLike = "all",
        sites: SitesLike = None,
        trained_on: str | None = None,
    ) -> None:
        place(self, [], strength, positions, sites)
        rows = matrix("the rotation of low_rank", rotation, (None, None))
        added = rows.new_zeros(len(rows)) if bias is None else bias
        object.__setattr__(self, "rotation", rows)
        object.__setattr__(
            self, "weight", matrix("the weight of low_rank", weight, tuple(rows.shape))
        )
        object.__setattr__(self, "bias", matrix("the bias of low_rank", added, (len(rows),)))
        object.__setattr__(self, "trained_on", trained_on)

    @property
    def directions(self) -> tuple[Direction, ...]:
        """None: it has matrices."""
        return ()

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the model it was trained on, if known."""
        return self.trained_on

    @property
    def settings(self) -> dict[str, Any]:
        """The model it was trained on."""
        return {"trained_on": self.trained_on}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """R, W and b."""
        return {"rotation": self.rotation, "weight": self.weight, "bias": self.bias}

    @property
    def subject(self) -> str:
        """Its rank."""
        return f"of rank {len(self.rotation)}"

    def group(self) -> Group:
        """One affine term a row of R."""
        s = self.strength
        return terms(
            self,
            Opcode.AFFINE,
            self.rotation,
            [(s, s * b, 0.0) for b in self.bias.double().tolist()],
            read=self.weight.double() - self.rotation.double(),
        )

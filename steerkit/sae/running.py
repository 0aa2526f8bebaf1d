"""Statistics of every feature that grow with each chunk of rows, in memory that does not."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """What features did over many tokens, and how well they rebuilt them.

    Attributes:
        rows: tokens seen.
        active: `[d_sae]`, tokens at which each feature was on.
        total: `[d_sae]`, sum of its activations, float64.
        maximum: `[d_sae]`, its largest activation; 0 if it was never on.
        variance: sum of squared distances of the activations from their mean.
        error: sum of squared distances of the activations from their reconstruction.
    """

    rows: int
    active: Int[Tensor, "d_sae"]
    total: Float[Tensor, "d_sae"]
    maximum: Float[Tensor, "d_sae"]
    variance: float
    error: float

    @property
    def density(self) -> Float[Tensor, "d_sae"]:
        """Fraction of tokens at which each feature is on."""
        return self.active.double() / max(self.rows, 1)

    @property
    def mean(self) -> Float[Tensor, "d_sae"]:
        """Mean activation over all tokens."""
        return self.total / max(self.rows, 1)

    @property
    def mean_active(self) -> Float[Tensor, "d_sae"]:
        """Mean activation over the tokens at which it is on; 0 if there are none."""
        return self.total / self.active.clamp(min=1)

    @property
    def l0(self) -> float:
        """Mean number of features on at a token."""
        return float(self.active.sum()) / max(self.rows, 1)

    @property
    def variance_explained(self) -> float:
        """1 - sum |h - h'|^2 / sum |h - mean h|^2: 1 is perfect, 0 as good as the mean alone."""
        return 1 - self.error / self.variance if self.variance > 0 else float("nan")

    @property
    def dead(self) -> float:
        """Fraction of features that were never on. Says little over few tokens."""
        return float((self.active == 0).double().mean())

    def summary(self) -> str:
        """One line of numbers."""
        return (
            f"{self.rows} tokens: L0 {self.l0:.3g}, variance explained "
            f"{self.variance_explained:.3g}, never on {self.dead:.1%} of {len(self.active)}"
        )

    def to_json(self) -> dict[str, Any]:
        """The numbers over all features; not the features'."""
        return {
            "rows": self.rows,
            "l0": self.l0,
            "variance_explained": self.variance_explained,
            "dead": self.dead,
            "d_sae": len(self.active),
        }

    def __repr__(self) -> str:
        return f"FeatureStatistics({self.summary()})"


class Running:
    """Statistics that grow with each chunk of rows; memory does not."""

    def __init__(self, d_sae: int, d_model: int) -> None:
        self.rows = 0
        self.active = torch.zeros(d_sae, dtype=torch.int64)
        self.total = torch.zeros(d_sae, dtype=torch.float64)
        self.maximum = torch.zeros(d_sae)
        self._mean = torch.zeros(d_model, dtype=torch.float64)
        self._spread = self._error = 0.0

    def add(
        self,
        features: Float[Tensor, "row d_sae"],
        x: Float[Tensor, "row d_model"],
        rebuilt: Float[Tensor, "row d_model"],
    ) -> None:
        """Take a chunk into account."""
        n = len(x)
        if n == 0:
            return
        self.active += (features != 0).sum(0)
        self.total += features.sum(0, dtype=torch.float64)
        self.maximum = torch.maximum(self.maximum, features.amax(0))
        # Chan, Golub and LeVeque's update: no cancellation where the mean is large.
        wide = x.double()
        mean = wide.mean(0)
        shift = mean - self._mean
        self._spread += float((wide - mean).square().sum())
        self._spread += float(shift.square().sum()) * self.rows * n / (self.rows + n)
        self._mean += shift * n / (self.rows + n)
        self._error += float((wide - rebuilt.double()).square().sum())
        self.rows += n

    def result(self) -> FeatureStatistics:
        """The statistics so far."""
        return FeatureStatistics(
            self.rows,
            self.active.clone(),
            self.total.clone(),
            self.maximum.clone(),
            self._spread,
            self._error,
        )

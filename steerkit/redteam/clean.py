"""How clean states lie at one place: mean, shrunk covariance, and norms."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.redteam.places import POINTS
from steerkit.site import Site
from steerkit.statistics import Floats


@dataclass(frozen=True, eq=False)
class Clean:
    """Mean and shrunk covariance of states, in float64, without a matrix of d_model squared.

    The covariance S is shrunk to (1 - r) S + r m I, m its mean variance, r by Ledoit and Wolf
    (2004, J. Multivariate Analysis 88, 365). It is kept as the rows' own axes and what is left.

    Attributes:
        mean: of the states.
        axes: orthonormal directions in which the rows vary.
        variance: along each axis, after shrinkage.
        rest: variance in every other direction; 0 where the rows do not vary at all.
        log_norm: mean and standard deviation of the log of the states' norm.
        watched: directions whose projections are watched, or None.
        projection: mean and standard deviation along each of them.
    """

    mean: Float[Tensor, "d_model"]
    axes: Float[Tensor, "k d_model"]
    variance: Float[Tensor, "k"]
    rest: float
    log_norm: tuple[float, float]
    watched: Float[Tensor, "j d_model"] | None = None
    projection: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(
        cls,
        rows: Float[Tensor, "row d_model"],
        watched: Float[Tensor, "j d_model"] | None = None,
    ) -> "Clean":
        """Fitted on all rows."""
        x = rows.double()
        along = None if watched is None else x @ watched.double().T
        n, d = x.shape
        centred = x - x.mean(0)
        _, size, axes = torch.linalg.svd(centred, full_matrices=False)
        keep = size > 1e-10 * max(float(size[0]), 1e-300)
        variance, axes = size[keep] ** 2 / n, axes[keep]
        m = float(variance.sum()) / d
        r = shrinkage(centred)
        norms = x.norm(dim=1).clamp_min(1e-300).log()
        spread = float(norms.std(correction=0))
        return cls(
            x.mean(0),
            axes,
            (1 - r) * variance + r * m,
            r * m,
            (float(norms.mean()), spread),
            watched,
            None if along is None else (along.mean(0), along.std(0, correction=0)),
        )

    @property
    def measures(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        """All that a state is measured by; larger is less like the rows."""
        return (self.distance, self.norm_shift, self.projection_shift)

    def distance(self, h: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead"]:
        """Mahalanobis distance over the root of d_model: about 1 for a state like the rows."""
        x = h.double() - self.mean
        along = x @ self.axes.T
        inside = (along**2 / self.variance.clamp_min(1e-300)).sum(-1)
        left = (x**2).sum(-1) - (along**2).sum(-1)
        outside = left.clamp_min(0) / max(self.rest, 1e-12 * float(self.mean.norm()) ** 2 + 1e-30)
        return ((inside + outside) / len(self.mean)).sqrt()

    def norm_shift(self, h: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead"]:
        """How many standard deviations the log of the norm lies from its mean."""
        logs = h.double().norm(dim=-1).clamp_min(1e-300).log()
        mean, spread = self.log_norm
        return (logs - mean).abs() / max(spread, 1e-9)

    def projection_shift(self, h: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead"]:
        """Standard deviations from the mean along the watched direction that is furthest off."""
        if self.watched is None or self.projection is None:
            return torch.zeros(h.shape[:-1], dtype=torch.float64)
        mean, spread = self.projection
        shift = (h.double() @ self.watched.double().T - mean).abs() / spread.clamp_min(1e-9)
        return shift.amax(-1)


def shrinkage(centred: Float[Tensor, "row d_model"]) -> float:
    """Ledoit and Wolf's weight of the identity, from centred rows."""
    n, d = centred.shape
    gram = centred @ centred.T
    squared = gram.diagonal()
    m = float(squared.sum()) / (n * d)
    frobenius = float((gram**2).sum()) / n**2
    noise = (float((squared**2).sum()) / n - frobenius) / (d * n)
    departure = frobenius / d - m**2
    return min(1.0, max(0.0, noise) / departure) if departure > 0 else 1.0


def fitted(
    states: Float[Tensor, "prompt place d_model"],
    sites: Sequence[Site],
    suspected: Mapping[Site, Tensor],
) -> tuple[Clean, ...]:
    """How the rows lie at each place."""
    return tuple(
        Clean.of(states[:, i], suspected.get(sites[i // len(POINTS)]))
        for i in range(states.shape[1])
    )


def raw_scores(clean: Sequence[Clean], states: Float[Tensor, "prompt place d_model"]) -> Floats:
    """Distance, norm shift and projection shift at each place, `[prompt place 3]`."""
    columns = [
        torch.stack([measure(states[:, i]) for measure in c.measures], -1)
        for i, c in enumerate(clean)
    ]
    return torch.stack(columns, 1).numpy()

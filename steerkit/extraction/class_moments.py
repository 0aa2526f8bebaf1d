"""Count, mean and centred moments of the rows of one class, which can be joined and moved."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ClassMoments:
    """Count, mean and moments about that mean of the rows of one class at one site, float64.

    With u = row - mean:

    Attributes:
        n: rows.
        mean: `[d_model]`.
        scatter: sum of u u', `[d_model d_model]`.
        skew: sum of |u|^2 u, `[d_model]`.
        fourth: sum of |u|^4; Ledoit and Wolf's shrinkage needs it, and `skew` to move it.

    Source: Chan, Golub and LeVeque 1983, The American Statistician 37, 242, for the second
    moments; the others are moved by the same expansion.
    """

    n: int
    mean: Float[Tensor, "d_model"]
    scatter: Float[Tensor, "d_model d_model"]
    skew: Float[Tensor, "d_model"]
    fourth: float

    @classmethod
    def of(cls, x: Float[Tensor, "row d_model"]) -> "ClassMoments":
        """In two passes over rows that are in memory."""
        mean = x.mean(0)
        u = x - mean
        squared = (u**2).sum(1)
        return cls(len(x), mean, u.T @ u, u.T @ squared, float((squared**2).sum()))

    @classmethod
    def none(cls, d: int) -> "ClassMoments":
        """Of no rows yet."""
        zero = torch.zeros(d, dtype=torch.float64)
        return cls(0, zero, torch.zeros(d, d, dtype=torch.float64), zero.clone(), 0.0)

    def about(self, centre: Float[Tensor, "d_model"]) -> "ClassMoments":
        """The same sums about another point, which then stands as `mean`."""
        t = centre - self.mean
        length, spread, turned = float(t @ t), float(self.scatter.trace()), self.scatter @ t
        skew = self.skew - (spread + self.n * length) * t - 2 * turned
        fourth = (
            self.fourth
            + 4 * float(t @ turned)
            - 4 * float(self.skew @ t)
            + 2 * length * spread
            + self.n * length**2
        )
        scatter = torch.addr(self.scatter, t, t, alpha=self.n)
        return ClassMoments(self.n, centre, scatter, skew, fourth)

    def __add__(self, other: "ClassMoments") -> "ClassMoments":
        """The moments of both sets of rows together."""
        if not (self.n and other.n):
            return self if self.n else other
        n = self.n + other.n
        mean = self.mean + (other.mean - self.mean) * (other.n / n)
        a, b = self.about(mean), other.about(mean)
        return ClassMoments(n, mean, a.scatter + b.scatter, a.skew + b.skew, a.fourth + b.fourth)

"""The registry of methods that estimate a subspace, and what they share."""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.extraction.training import Training
from steerkit.registry import Registry

RANK = 1e-6
"""An axis that carries less than this fraction of the first one's size is rounding."""


@dataclass(frozen=True, eq=False)
class Labelling:
    """Several labellings of the same rows, and the category of each row.

    Attributes:
        labels: 1 or 0, `[row column]`, float64; column 0 holds the observed labels.
        categories: a number for each row, from 0; all 0 where categories do not count.
    """

    labels: Float[Tensor, "row column"]
    categories: Tensor

    @classmethod
    def of(cls, labels: Tensor, categories: Tensor | None = None) -> "Labelling":
        """Labels `[row]` or `[row column]`; one category by default."""
        y = labels.to(torch.float64).reshape(len(labels), -1)
        return cls(y, torch.zeros(len(y), dtype=torch.long) if categories is None else categories)

    def contrasts(self) -> Float[Tensor, "category row column"]:
        """Weights whose sum over rows is a category's positive mean less its negative mean.

        Where a labelling leaves a category without one side, all rows of that side stand in.
        """
        y = self.labels
        weights = []
        for category in self.categories.unique():
            inside = (self.categories == category).to(y.dtype)[:, None]
            weights.append(_mean_weights(y, inside) - _mean_weights(1 - y, inside))
        return torch.stack(weights)

    def differences(self, x: Float[Tensor, "row d"]) -> Float[Tensor, "column d category"]:
        """The mean difference of each category under each labelling."""
        return torch.einsum("rd,crk->kdc", x, self.contrasts())


def _mean_weights(side: Tensor, inside: Tensor) -> Tensor:
    own = side * inside
    own = torch.where(own.sum(0) > 0, own, side)
    return own / own.sum(0)


class Span(Protocol):
    """Labelled rows of one site in, an orthonormal basis out."""

    estimates: str
    """What it estimates, in words and symbols."""

    def __call__(
        self, rows: Training, labelling: Labelling, k: int
    ) -> Float[Tensor, "column d_model axis"]:
        """Orthonormal axes for each labelling, most important first; the first j axes span
        what j alone would give. There are min(k, rank under the observed labels) of them.
        """
        ...


SPANS: Registry[Span] = Registry("subspace method", "steerkit.extraction")
"""Every method that estimates a subspace, by name."""


def leading(
    vectors: Float[Tensor, "column d m"], k: int
) -> tuple[Float[Tensor, "column d axis"], Float[Tensor, "column axis"]]:
    """Left singular vectors and values of each matrix, largest first.

    As many as k and the rank of the first matrix allow. Through the small Gram matrix, with
    one more pass that makes the axes orthonormal to rounding.
    """
    gram = vectors.mT @ vectors
    spread, right = torch.linalg.eigh(gram)
    size = spread.clamp(min=0).sqrt().flip(-1)
    rank = min(k, int((size[0] > RANK * size[0, 0]).sum()))
    axes = vectors @ right.flip(-1)[..., :rank]
    return orthonormal(axes), size[:, :rank]


def orthonormal(vectors: Float[Tensor, "column d k"]) -> Float[Tensor, "column d k"]:
    """Gram and Schmidt, in the order given and keeping signs."""
    q, r = torch.linalg.qr(vectors)
    sign = r.diagonal(dim1=-2, dim2=-1).sign()
    return q * torch.where(sign == 0, 1.0, sign)[:, None, :]

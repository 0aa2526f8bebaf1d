"""The rows that a direction is fitted on, and their principal axes, computed once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

CLEAR = 1e-9
"""Squared singular values above this fraction of the largest keep their digits in a Gram matrix."""


@dataclass(frozen=True, eq=False)
class Training:
    """Rows of one site and the group of each, float64.

    Labels are not part of it: a permutation null fits hundreds of labellings of the same
    rows, and what does not depend on labels (mean, principal axes) is computed once.
    """

    x: Float[Tensor, "row d_model"]
    groups: tuple[str, ...]

    @classmethod
    def of(cls, x: Tensor, groups: Sequence[str]) -> "Training":
        """Rows in any dtype."""
        return cls(x.detach().to("cpu", torch.float64), tuple(groups))

    @cached_property
    def mean(self) -> Float[Tensor, "d_model"]:
        """Mean of all rows."""
        return self.x.mean(0)

    @cached_property
    def _svd(self) -> tuple[Tensor, Tensor, Tensor]:
        return principal(self.x - self.mean)

    @property
    def axes(self) -> Float[Tensor, "rank d_model"]:
        """Orthonormal principal axes of the centred rows, largest spread first."""
        return self._svd[2]

    @property
    def spread(self) -> Float[Tensor, "rank"]:
        """Sum of squares of the centred rows along each axis."""
        return self._svd[1] ** 2

    @cached_property
    def coordinates(self) -> Float[Tensor, "row rank"]:
        """The centred rows in their principal axes."""
        return self._svd[0] * self._svd[1]

    @property
    def d_model(self) -> int:
        """Width of the stream."""
        return self.x.shape[1]

    def __len__(self) -> int:
        return self.x.shape[0]


def principal(centred: Float[Tensor, "row d"]) -> tuple[Tensor, Tensor, Tensor]:
    """Singular value decomposition without what is rounding, `[row rank]`, `[rank]`, `[rank d]`.

    Through the smaller Gram matrix, several times faster than directly, unless singular
    values lie so far apart that squares of the small ones would lose their digits.
    """
    n, d = centred.shape
    wide = d > n
    square, turn = torch.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    square, turn = square.flip(0), turn.flip(1)
    # Centred rows span at most n - 1 axes; what is left is rounding.
    rounding = 10 * len(square) * torch.finfo(square.dtype).eps * square[0]
    keep = square > rounding
    if bool((square[keep] > CLEAR * square[0]).all()):
        s, turn = square[keep].sqrt(), turn[:, keep]
        if wide:
            return turn, s, turn.T @ centred / s[:, None]
        return centred @ turn / s, s, turn.T
    u, s, vh = torch.linalg.svd(centred, full_matrices=False)
    keep = s > 1e-10 * s.max()
    return u[:, keep], s[keep], vh[keep]


def class_means(
    x: Float[Tensor, "row d"], labels: Float[Tensor, "row k"]
) -> tuple[Float[Tensor, "d k"], Float[Tensor, "d k"]]:
    """Mean of the positive and of the negative rows under each column of labels."""
    y = labels.to(x.dtype)
    n_pos, n_neg = y.sum(0), (1 - y).sum(0)
    return x.T @ (y / n_pos), x.T @ ((1 - y) / n_neg)


def gap(x: Float[Tensor, "row d"], labels: Float[Tensor, "row k"]) -> Float[Tensor, "d k"]:
    """Mean of the positive rows minus mean of the negative ones, for each column of labels."""
    y = labels.to(x.dtype)
    return x.T @ (y / y.sum(0) - (1 - y) / (1 - y).sum(0))

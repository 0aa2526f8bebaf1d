"""What every criterion reads: the rows of one site, and the draws that all of them share.

A criterion is evaluated under many weightings of the rows at once. Draw 0 counts every row
once and gives the value; the other draws resample whole groups, and in them the criterion is
computed anew, fits included. Copies of a row in a draw are weights, so no row is ever compared
with its own copy, and folds never part a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from steerkit.extraction.labelled import FLAT
from steerkit.registry import Registry
from steerkit.statistics import Floats, group_codes, grouped_folds, row_draws

Normalise = Literal["none", "rms"]
NORMALISE: tuple[Normalise, ...] = ("none", "rms")
MATCHINGS = 8
"""Random pairings averaged where prompts come without pairs."""
FIRST_REFITS, REFITS = 100, 16
"""Resamples inside draw 0 and inside each other draw, for what is itself about resampling."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Labels, groups, folds, pairs and draws: the same for every site and criterion.

    Attributes:
        labels: `[row]`, 1 or 0.
        groups: `[row]`, numbers of the groups.
        weights: `[row draw]`, how often each row counts; ones in draw 0.
        folds: (train rows, test rows) of each fold.
        pairs: pairings; each is the rows of the positive and of the negative sides.
        seed: of whatever else is drawn.
    """

    labels: Int[Tensor, "row"]
    groups: NDArray[np.int64]
    weights: Float[Tensor, "row draw"]
    folds: tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...]
    pairs: tuple[tuple[Tensor, Tensor], ...]
    seed: int

    @classmethod
    def of(
        cls,
        labels: Sequence[int] | NDArray[Any],
        groups: Sequence[str],
        *,
        n_resamples: int = 0,
        n_folds: int = 5,
        seed: int = 0,
    ) -> "Plan":
        """Draw everything that depends on labels and groups alone."""
        y = np.asarray(labels).astype(np.int64)
        drawn = [np.ones((len(y), 1))]
        if n_resamples:
            drawn.append(row_draws(groups, n_resamples=n_resamples, seed=seed))
        return cls(
            torch.from_numpy(y),
            group_codes(groups),
            torch.from_numpy(np.hstack(drawn)),
            tuple(grouped_folds(y, groups, n_folds=n_folds, seed=seed)),
            tuple(pairings(y, group_codes(groups), seed)),
            seed,
        )

    @property
    def positive(self) -> Float[Tensor, "row draw"]:
        """The weights of the positive rows, 0 elsewhere."""
        return self.weights * self.labels[:, None]

    @property
    def negative(self) -> Float[Tensor, "row draw"]:
        """The weights of the negative rows, 0 elsewhere."""
        return self.weights * (1 - self.labels)[:, None]

    @cached_property
    def pair_weights(self) -> tuple[Float[Tensor, "pair draw"], ...]:
        """Of each pairing: how often a pair counts, its own group's or both rows' weight."""
        found = []
        for first, second in self.pairs:
            w = self.weights[first]
            same = torch.from_numpy(self.groups[first.numpy()] == self.groups[second.numpy()])
            found.append(torch.where(same[:, None], w, w * self.weights[second]))
        return tuple(found)

    @cached_property
    def refits(self) -> tuple[Float[Tensor, "refit group"], Int[Tensor, "refit"]]:
        """Resamples of the groups inside every draw: counts, and the draw of each."""
        n_groups = int(self.groups.max()) + 1
        of_group = torch.zeros(n_groups, self.weights.shape[1], dtype=torch.float64)
        of_group[torch.from_numpy(self.groups)] = self.weights
        rng = np.random.default_rng([self.seed, 1])
        share = of_group.T.numpy() / n_groups
        first = rng.multinomial(n_groups, share[0], size=FIRST_REFITS)
        rest = rng.multinomial(n_groups, share[1:, None], size=(len(share) - 1, REFITS))
        counts = np.concatenate([first, rest.reshape(-1, n_groups)]).astype(np.float32)
        draw = np.repeat(np.arange(len(share)), [FIRST_REFITS] + [REFITS] * (len(share) - 1))
        return torch.from_numpy(counts), torch.from_numpy(draw)


@dataclass(frozen=True, eq=False)
class Rows:
    """The states of one site and position, float64, with what several criteria share.

    Attributes:
        x: the states, normalised as asked; all zero where they differ by rounding only.
        plan: labels, groups and draws.
    """

    x: Float[Tensor, "row d_model"]
    plan: Plan

    @classmethod
    def of(cls, values: Tensor, plan: Plan, normalise: Normalise = "none") -> "Rows":
        """Rows in any dtype; with `rms` each is divided by its root mean square."""
        x = values.to(torch.float64)
        if normalise == "rms":
            x = x / x.pow(2).mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
        size = float(x.norm(dim=1).mean())
        if float((x - x[0]).norm(dim=1).max()) <= FLAT * size:
            x = torch.zeros_like(x)
        return cls(x, plan)

    @cached_property
    def z(self) -> Float[Tensor, "row axis"]:
        """The centred rows in an orthonormal basis of their own, no wider than they are many.

        Distances and inner products are those of the rows, at less width.
        """
        centred = self.x - self.x.mean(0)
        if centred.shape[1] <= centred.shape[0]:
            return centred
        narrow: Tensor = torch.linalg.qr(centred.T, mode="r").R.T
        return narrow

    @cached_property
    def means(self) -> tuple[Float[Tensor, "axis draw"], Float[Tensor, "axis draw"]]:
        """Mean of either side in every draw, along `z`; NaN in a draw without that side."""
        plan = self.plan
        sides = (plan.positive, plan.negative)
        positive, negative = (self.z.T @ w / w.sum(0) for w in sides)
        return positive, negative

    @property
    def difference(self) -> Float[Tensor, "axis draw"]:
        """Mean of the positive side minus mean of the negative side, in every draw."""
        positive, negative = self.means
        return positive - negative

    @cached_property
    def units(self) -> tuple[Float[Tensor, "pair axis"], ...]:
        """Of each pairing: h+ - h- of every pair at norm 1, or 0 where the two are the same."""
        return tuple(unit(self.z[first] - self.z[second]) for first, second in self.plan.pairs)


def unit(rows: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead d"]:
    """The rows at norm 1; a row of zeros stays one."""
    norms = rows.norm(dim=-1, keepdim=True)
    return rows / torch.where(norms > 0, norms, 1.0)


class Criterion(Protocol):
    """How far the two sides differ at a site: higher is more."""

    unit: str
    """Of its values."""
    measures: str
    """What it measures, in words and symbols."""

    def __call__(self, rows: Rows) -> Floats:
        """Its value in every draw, `[draw]`; NaN in a draw that lacks a side."""
        ...


CRITERIA: Registry[Criterion] = Registry("criterion", "steerkit.searches.criteria")
"""Every criterion by name. Writing a file that registers one is enough to add it."""


def pairings(
    labels: NDArray[np.int64], groups: NDArray[np.int64], seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Rows of the positive and of the negative prompt of each pair.

    One pairing, within groups, where every group holds as many of either side; otherwise
    `MATCHINGS` random ones, the larger side cut to the smaller in each.
    """
    order = np.argsort(groups, kind="stable")
    first, second = order[labels[order] == 1], order[labels[order] == 0]
    n_groups = int(groups.max()) + 1
    count = [np.bincount(groups[side], minlength=n_groups) for side in (first, second)]
    if (count[0] == count[1]).all():
        return [(torch.from_numpy(first), torch.from_numpy(second))]
    rng = np.random.default_rng(seed)
    n = min(len(first), len(second))
    drawn = [(rng.permutation(first)[:n], rng.permutation(second)[:n]) for _ in range(MATCHINGS)]
    return [(torch.from_numpy(a), torch.from_numpy(b)) for a, b in drawn]

"""What every criterion reads: the rows of one site, and the draws that all of them share.

A criterion is evaluated under many draws at once, each with its own weights and labels of the
rows. Draw 0 counts every row once and gives the value. Then come resamples of whole groups, in
which the criterion is computed anew, fits included, and then permuted labels, as the null has
them. Copies of a row in a resample are weights, so no row is ever compared with its own copy,
and folds never part a group.
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
from steerkit.statistics import Floats, group_codes, grouped_folds, permutations, row_draws

Normalise = Literal["none", "rms"]
NORMALISE: tuple[Normalise, ...] = ("none", "rms")
MATCHINGS = 16
"""Random matchings of all rows where prompts come without pairs; half of their pairs, if sides
are of one size, have one prompt of either side and count."""
FIRST_REFITS, REFITS = 100, 16
"""Resamples inside draw 0 and inside each other draw, for what is itself about resampling."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Labels, groups, folds, pairs and draws: the same for every site and criterion.

    Attributes:
        y: `[row draw]`, 1 or 0: the label of each row, permuted in the last draws.
        weights: `[row draw]`, how often each row counts; ones but for the resamples.
        groups: `[row]`, numbers of the groups.
        folds: (train rows, test rows) of each fold.
        pairs: matchings of rows, `(first, second)` each; no row is twice in one.
        n_resamples: how many draws after the first resample groups.
        seed: of whatever else is drawn.
    """

    y: Float[Tensor, "row draw"]
    weights: Float[Tensor, "row draw"]
    groups: NDArray[np.int64]
    folds: tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...]
    pairs: tuple[tuple[Tensor, Tensor], ...]
    n_resamples: int
    seed: int

    @classmethod
    def of(
        cls,
        labels: Sequence[int] | NDArray[Any],
        groups: Sequence[str],
        *,
        n_resamples: int = 0,
        n_permutations: int = 0,
        n_folds: int = 5,
        seed: int = 0,
    ) -> "Plan":
        """Draw everything that depends on labels and groups alone."""
        observed = np.asarray(labels).astype(np.int64)
        folds = tuple(grouped_folds(observed, groups, n_folds=n_folds, seed=seed))
        fold_of = np.zeros(len(observed), dtype=np.int64)
        for number, (_, test) in enumerate(folds):
            fold_of[test] = number
        rng = np.random.default_rng(seed)
        exchanged = permutations(observed, groups, n_permutations, rng, within=fold_of)
        drawn = np.ones((len(observed), 1 + n_resamples + n_permutations))
        if n_resamples:
            drawn[:, 1 : 1 + n_resamples] = row_draws(groups, n_resamples=n_resamples, seed=seed)
        y = np.hstack([np.repeat(observed[:, None], 1 + n_resamples, 1), exchanged])
        code = group_codes(groups)
        return cls(
            torch.from_numpy(y).double(),
            torch.from_numpy(drawn),
            code,
            folds,
            tuple(matchings(observed, code, seed)),
            n_resamples,
            seed,
        )

    @property
    def labels(self) -> Int[Tensor, "row"]:
        """The observed labels."""
        return self.y[:, 0].long()

    @property
    def n_draws(self) -> int:
        """The observed one, the resamples and the permutations."""
        return self.y.shape[1]

    @cached_property
    def positive(self) -> Float[Tensor, "row draw"]:
        """The weights of the positive rows, 0 elsewhere."""
        return self.weights * self.y

    @cached_property
    def negative(self) -> Float[Tensor, "row draw"]:
        """The weights of the negative rows, 0 elsewhere."""
        return self.weights * (1 - self.y)

    @cached_property
    def pair_weights(self) -> tuple[Float[Tensor, "pair draw"], ...]:
        """Of each matching: how often a pair counts, its own group's or both rows' weight.

        Below zero where the first row is the negative one, 0 where both are of one side.
        """
        found = []
        for first, second in self.pairs:
            w = self.weights[first]
            same = torch.from_numpy(self.groups[first.numpy()] == self.groups[second.numpy()])
            both = torch.where(same[:, None], w, w * self.weights[second])
            found.append(both * (self.y[first] - self.y[second]))
        return tuple(found)

    @cached_property
    def refits(self) -> tuple[Float[Tensor, "refit group"], Int[Tensor, "refit"]]:
        """Resamples of the groups inside every draw: counts, and the draw of each."""
        n_groups = int(self.groups.max()) + 1
        of_group = torch.zeros(n_groups, self.n_draws, dtype=torch.float64)
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


def matchings(
    labels: NDArray[np.int64], groups: NDArray[np.int64], seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Pairs of rows, no row twice in a matching.

    One matching, the positive and negative rows of each group in their order, where every
    group holds as many of either; otherwise `MATCHINGS` random ones of all rows, of which
    the pairs with one row of either side will count. These do not look at labels, so that
    permuted ones are treated alike.
    """
    order = np.argsort(groups, kind="stable")
    first, second = order[labels[order] == 1], order[labels[order] == 0]
    n_groups = int(groups.max()) + 1
    count = [np.bincount(groups[side], minlength=n_groups) for side in (first, second)]
    if (count[0] == count[1]).all():
        return [(torch.from_numpy(first), torch.from_numpy(second))]
    rng = np.random.default_rng(seed)
    n = len(labels) // 2
    drawn = (rng.permutation(len(labels)) for _ in range(MATCHINGS))
    return [(torch.from_numpy(d[:n]), torch.from_numpy(d[n : 2 * n])) for d in drawn]

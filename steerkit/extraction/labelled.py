"""Labelled rows of several sites, checked before anything is fitted to them."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from steerkit.activations import Activations
from steerkit.errors import ActivationError, DirectionError
from steerkit.prompts import Prompt

N_EXAMPLES = 5
FLAT = 1e-6
"""Differences below this fraction of the mean row norm are float32 rounding, not signal."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """What fitting needs of activations: rows, the prompt of each, labels, groups.

    Attributes:
        acts: the activations.
        prompts: those prompts that have rows.
        labels: 1 or 0 for each of these prompts.
        groups: the group of each of these prompts.
        owner: `[row]`, which of these prompts each row belongs to.
    """

    acts: Activations
    prompts: tuple[Prompt, ...]
    labels: NDArray[np.int64]
    groups: tuple[str, ...]
    owner: NDArray[np.int64]

    @classmethod
    def of(cls, acts: Activations) -> "Labelled":
        """Check labels and groups.

        Raises:
            ActivationError: no labels, one side only, NaN.
        """
        if not acts.labels:
            raise ActivationError(
                "these activations have no labels; capture a Contrast, not a list of prompts"
            )
        if len(acts) == 0:
            raise ActivationError("there are no rows to extract a direction from")
        present, owner = np.unique(acts.prompt_index.numpy(), return_inverse=True)
        labels = np.asarray(acts.labels, dtype=np.int64)[present]
        if not set(labels) <= {0, 1}:
            raise ActivationError(f"labels are 1 or 0; got {sorted({int(v) for v in labels})[:5]}")
        if labels.min() == labels.max():
            side, other = ("positive", "negative") if labels[0] else ("negative", "positive")
            raise ActivationError(
                f"all {len(labels)} prompts are {side}; a direction needs both sides: "
                f"capture a contrast with {other} prompts too"
            )
        groups = acts.groups or tuple(f"prompt{i}" for i in range(len(acts.prompts)))
        return cls(
            acts,
            tuple(acts.prompts[i] for i in present),
            labels,
            tuple(groups[i] for i in present),
            owner,
        )

    @property
    def row_labels(self) -> NDArray[np.int64]:
        """The label of each row."""
        return self.labels[self.owner]

    @property
    def row_groups(self) -> tuple[str, ...]:
        """The group of each row."""
        return tuple(self.groups[i] for i in self.owner)

    def rows(self, site: int) -> Float[Tensor, "row d_model"]:
        """The rows of the `site`-th site, float64.

        Raises:
            ActivationError: a value that is not finite, or rows that are all the same.
            DirectionError: class means that are the same.
        """
        x = self.acts.values[:, site].to(torch.float64)
        name = self.acts.sites[site]
        if not torch.isfinite(x).all():
            row = int((~torch.isfinite(x)).any(1).nonzero()[0])
            raise ActivationError(
                f"an activation at {name} is NaN or infinite, first for prompt "
                f"{self.prompts[int(self.owner[row])].text[:60]!r}; load the model in a wider dtype"
            )
        size = float(x.norm(dim=1).mean())
        if float((x - x[0]).norm(dim=1).max()) <= FLAT * size:
            raise ActivationError(
                f"all {len(x)} rows at {name} are the same, so no direction can be read there "
                "(at resid_pre@0 the last token of a chat template is the same for every "
                "prompt); leave that site out or capture other positions"
            )
        y = torch.from_numpy(self.row_labels) == 1
        gap = float((x[y].mean(0) - x[~y].mean(0)).norm())
        if gap <= FLAT * size:
            raise DirectionError(
                f"the class means at {name} are the same (gap {gap:.2g}, mean row norm "
                f"{size:.3g}): positive and negative prompts do not differ there on average; "
                "look at the contrast, or leave that site out"
            )
        return x

    def examples(
        self, projections: NDArray[np.float64]
    ) -> tuple[tuple[tuple[str, float], ...], tuple[tuple[str, float], ...]]:
        """The prompts whose mean projection `[row]` is highest, and those where it is lowest."""
        means = np.bincount(self.owner, weights=projections) / np.bincount(self.owner)
        order = np.argsort(-means, kind="stable")
        take = min(N_EXAMPLES, len(order) // 2)

        def named(rows: NDArray[np.int64]) -> tuple[tuple[str, float], ...]:
            return tuple((self.prompts[i].text, float(means[i])) for i in rows)

        return named(order[:take]), named(order[::-1][:take])

    def require_groups(self) -> None:
        """Raise if held-out scoring is impossible: each side needs two groups or more."""
        for value, side in ((1, "positive"), (0, "negative")):
            found = {g for g, label in zip(self.groups, self.labels, strict=True) if label == value}
            if len(found) < 2:
                raise ActivationError(
                    f"the {side} prompts belong to {len(found)} group, and groups are never split, "
                    "so nothing could be held out; give at least 2 groups on each side, or "
                    "n_folds=0 to fit without scoring"
                )

    def require_folds(self, n_folds: int) -> None:
        """Raise if a fold would be empty of a side: each side needs a group a fold."""
        self.require_groups()
        for value, side in ((1, "positive"), (0, "negative")):
            found = {g for g, label in zip(self.groups, self.labels, strict=True) if label == value}
            if len(found) < n_folds:
                raise ActivationError(
                    f"{n_folds} folds need {n_folds} groups with {side} prompts, as groups (pairs, "
                    f"templates) are never split; there are {len(found)}: give more prompts, or "
                    f"n_folds={len(found)}, or n_folds=0 to fit without scoring"
                )

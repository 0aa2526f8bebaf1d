"""Both reference concepts of BiasLens at one site, with what their exchange and chance give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from steerkit.concepts.bias_probes import Concept, Draws, held_out_auc, kept_rows
from steerkit.concepts.cavs import Cavs, Method, Representation, fit_cavs
from steerkit.extraction.training import Training
from steerkit.statistics import Floats, grouped_folds, permutations


@dataclass(frozen=True, eq=False)
class References:
    """Both references at one site: held-out AUCs, and unit vectors of every column by arm."""

    aucs: tuple[float, float]
    between: float
    """AUC of a probe of one reference against the other, on unseen words."""
    units: Mapping[str, tuple[Tensor, Tensor]]
    random: Mapping[str, Floats]
    """S of random directions in the target's place."""
    active: Mapping[str, tuple[int, int]]
    """How many entries of the observed vectors are not zero."""


def fit_references(
    both: Sequence[Concept],
    site: int,
    draws: Draws,
    method: Method,
    arms: Sequence[Representation],
) -> References:
    """Probes of both references; their permuted columns exchange sentences between the two.

    A sentence of r1 may become one of r2 in the same group, and the other way round; each
    keeps its own negatives.
    """
    where = both[0].acts.sites[site]
    own = [concept.fit(site, draws, method) for concept in both]
    x = torch.cat([c.acts.values[:, site] for c in both])
    groups = [g for c in both for g in c.acts.groups]
    rows = Training.of(x, groups)
    y = np.concatenate([c.labels[:, 0] for c in both])
    side = np.concatenate([np.full(len(c.labels), i) for i, c in enumerate(both)])
    positive = np.flatnonzero(y == 1)
    swapped = np.repeat(side[:, None], draws.permutations, 1)
    swapped[positive] = permutations(
        side[positive],
        [groups[i] for i in positive],
        draws.permutations,
        np.random.default_rng((draws.seed, 3)),
    )
    labels = torch.from_numpy(np.repeat(y[:, None], draws.permutations, 1))
    units: dict[str, tuple[Tensor, Tensor]] = {}
    exchanged = [
        fit_cavs(rows, labels, torch.from_numpy((swapped == i).astype(np.float64)), method=method)
        for i in (0, 1)
    ] if draws.permutations else None  # fmt: skip
    generator = torch.Generator().manual_seed(draws.seed)
    noise = torch.randn(x.shape[1], draws.random, generator=generator, dtype=torch.float64)
    mixed = torch.randn(len(x), draws.random, generator=generator, dtype=torch.float64)
    chance = Cavs(noise, -rows.mean @ noise, rows.x, mixed - mixed.mean(0))
    random: dict[str, Floats] = {}
    for arm in arms:
        parts = []
        for i, (cavs, _) in enumerate(own):
            kept = arm(where, cavs)
            if exchanged is not None:
                kept = torch.cat([kept, arm(where, exchanged[i])], 1)
            parts.append(unit_columns(kept))
        units[arm.name] = parts[0], parts[1]
        gap = parts[0][:, 0] - parts[1][:, 0]
        random[arm.name] = (gap @ unit_columns(arm(where, chance))).numpy()
    between = between_auc(both, x[positive], side[positive], draws.seed)
    active = {
        name: (active_entries(one[:, 0]), active_entries(other[:, 0]))
        for name, (one, other) in units.items()
    }
    return References((own[0][1], own[1][1]), between, units, random, active)


def between_auc(both: Sequence[Concept], x: Tensor, side: NDArray[np.int64], seed: int) -> float:
    """AUC of sentences of r1 against those of r2, about words that were not fitted on."""
    shown = [[p for p, y in zip(c.acts.prompts, c.labels[:, 0], strict=True) if y] for c in both]
    few = min(len({p.category for p in prompts}) for prompts in shown) < 2
    groups = [p.group if few else p.category for prompts in shown for p in prompts]
    first = (1 - side).astype(np.float64)
    folds = grouped_folds(first, groups, seed=seed)
    return held_out_auc(Training.of(x, groups), first, kept_rows(len(first), folds))


def unit_columns(vectors: Float[Tensor, "width fit"]) -> Float[Tensor, "width fit"]:
    """Columns divided by their norms; NaN where a column is zero."""
    return vectors / vectors.norm(dim=0)


def active_entries(vector: Float[Tensor, "width"]) -> int:
    """How many entries are not zero; 0 for a vector that is all zero, and so has no unit."""
    return int(((vector != 0) & vector.isfinite()).sum())

"""What a monitor is held against: random directions, exchanged labels, the words alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.captures import capture
from steerkit.concepts.monitor_sides import Sides
from steerkit.concepts.monitor_statistics import fitted_threshold
from steerkit.direction import Direction
from steerkit.extraction.ranking import fold_auc
from steerkit.extraction.text_baseline import text_scores
from steerkit.protocols import Model
from steerkit.statistics import (
    Estimate,
    Floats,
    Null,
    cluster_mean,
    grouped_folds,
    null,
    permutations,
)


def random_units(
    model: Model, direction: Direction, sides: Sides, n: int, seed: int
) -> list[Float[Tensor, "n d_model"]]:
    """Unit vectors: isotropic ones, and mixtures of the prompts' own centred activations.

    The mixtures are made orthogonal to the direction: where it is much of what makes activations
    vary, they would be copies of it.
    """
    if not n:
        return []
    generator = torch.Generator().manual_seed(seed)
    isotropic = torch.randn(n, direction.model.d_model, generator=generator)
    bare = [p.with_answer("") for p in sides.prompts]
    rows = capture(
        model, bare, sites=direction.site, positions="mean_prompt", progress=False
    ).values[:, 0]  # fmt: skip
    shaped = torch.randn(n, len(rows), generator=generator) @ (rows - rows.mean(0))
    shaped = shaped - (shaped @ direction.unit)[:, None] * direction.unit
    return [x / x.norm(dim=1, keepdim=True).clamp_min(1e-30) for x in (isotropic, shaped)]


def exchanged_labels(alarms: Any, labels: Any, groups: Sequence[str], n: int, seed: int) -> Null:
    """Recall less false positives under labels exchanged within groups, or between pure ones."""

    def excess(y: Any) -> Floats:
        hit = alarms.astype(float)[:, None] * y
        found: Floats = hit.sum(0) / y.sum(0) - (alarms.sum() - hit.sum(0)) / (1 - y).sum(0)
        return found

    name = "labels exchanged"
    if not n:
        return null(name, float("nan"), [])
    draws = excess(permutations(labels, groups, n, np.random.default_rng(seed)))
    return null(name, float(excess(np.asarray(labels)[:, None])[0]), draws)


def words_alone(
    sides: Sides, cal: Any, caught: Any, fpr: float, confidence: float | None, seed: int
) -> tuple[Estimate | None, Estimate | None]:
    """AUC and recall of words alone, each prompt scored by a fit on other groups."""
    folds = grouped_folds(sides.labels, sides.groups, seed=seed)
    scores = text_scores(sides.prompts, sides.labels, folds)
    if scores is None:
        return None, None
    of_fold = np.zeros(len(sides), dtype=np.int64)
    for number, (_, test) in enumerate(folds):
        of_fold[test] = number
    auc = fold_auc(scores, sides.labels, of_fold, sides.groups, seed=seed)
    cut = fitted_threshold(scores[cal], fpr, confidence)
    if np.isnan(cut):
        return auc, None
    return auc, cluster_mean((scores[caught] > cut).astype(float), sides.named(caught))

"""`find_features`: the features that tell the sides of a contrast apart, on unseen prompts."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steerkit.activations import Activations
from steerkit.errors import ActivationError, MethodError
from steerkit.extraction.labelled import Labelled
from steerkit.extraction.ranking import fold_auc
from steerkit.extraction.text_baseline import text_scores
from steerkit.registry import suggest
from steerkit.sae.autoencoder import Autoencoder
from steerkit.sae.found import FoundFeature, FoundFeatures
from steerkit.sae.rows import chunks
from steerkit.statistics import (
    Estimate,
    Floats,
    Null,
    grouped_folds,
    holm,
    null,
    permutations,
    row_draws,
)

POOLINGS = ("max", "mean")
"""How the tokens of a prompt become one number for each feature."""


def find_features(
    sae: Autoencoder,
    acts: Activations,
    *,
    n: int = 10,
    by: str = "auc",
    pool: str = "max",
    concept: str | None = None,
    n_permutations: int = 999,
    seed: int = 0,
) -> FoundFeatures:
    """Features that separate the sides of a contrast: half of the groups choose, half measure.

    Args:
        sae: the autoencoder.
        acts: labelled activations at its site: one token a prompt, or `positions="all"`.
        n: how many features to list.
        by: rank on the choosing half by `auc` (distance from 0.5) or by `difference` (of the
            mean activations).
        pool: with all tokens, a prompt counts by its largest (`max`) or `mean` activation.
        concept: what the contrast is called; its name by default.
        n_permutations: permuted labellings.
        seed: of the halves, the permutations and the resampling.

    Raises:
        ActivationError: no labels, one side only, fewer than two groups a side in either half,
            activations of another site, or nothing that any feature responds to.
        MethodError: an unknown ranking or pooling, counts below 1.
        DirectionError: activations of another model.
    """
    for what, value, known in (("ranking", by, ("auc", "difference")), ("pooling", pool, POOLINGS)):
        if value not in known:
            raise MethodError(f"no {what} named '{value}'; {suggest(value, known)}")
    if n < 1 or n_permutations < 1:
        raise MethodError(f"n and n_permutations are at least 1; got {n} and {n_permutations}")
    data = Labelled.of(acts)
    _require_halves(data)
    values, on, total, rows = _by_prompt(sae, acts, data, pool)
    live = np.flatnonzero(on > 0)
    live = live[np.ptp(values[:, live], axis=0) > 0]
    if not len(live):
        raise ActivationError(
            f"no feature of {sae.name} tells any two of these {len(values)} prompts apart; look "
            "at load_sae(..., prompts=...) for whether the SAE fits the model"
        )
    x = values[:, live]
    choose, measure = grouped_folds(data.labels, data.groups, n_folds=2, seed=seed)[0]
    half = np.zeros(len(x), dtype=np.int64)
    half[measure] = 1
    rng = np.random.default_rng(seed)
    exchanged = permutations(data.labels, data.groups, n_permutations, rng, within=half)
    labels = np.hstack([data.labels[:, None], exchanged]).astype(np.float64)
    chosen_by = _auc(x[choose], labels[choose])
    measured = _auc(x[measure], labels[measure])
    score = np.abs(chosen_by - 0.5)
    if by == "difference":
        score = np.abs(_difference(x[choose], labels[choose]))
    order = np.argsort(-score[:, 0], kind="stable")[:n]
    sign = np.where(chosen_by >= 0.5, 1.0, -1.0)
    oriented = 0.5 + sign * (measured - 0.5)
    # Column by column: what the whole search, choice included, gives on permuted labels.
    winner = score.argmax(0)
    search = oriented[winner, np.arange(oriented.shape[1])]
    largest = 0.5 + np.abs(measured - 0.5).max(0)
    gap = _difference(x[measure], labels[measure][:, :1])[:, 0]
    held = [data.groups[i] for i in measure]
    draws = row_draws(held, seed=seed)
    nulls = [_null(sign[i, 0], measured[i]) for i in order]
    adjusted = holm([found.p for found in nulls])
    items = []
    for i, chance, p_holm in zip(order, nulls, adjusted, strict=True):
        own = int(live[i])
        items.append(
            FoundFeature(
                feature=own,
                sign=int(sign[i, 0]),
                auc=_estimate(sign[i, 0] * x[measure, i], data.labels[measure], held, draws),
                difference=float(gap[i]),
                density=float(on[own] / rows),
                mean_active=float(total[own] / on[own]),
                permutation=chance,
                family=null(f"largest of {len(live)} features", oriented[i, 0], largest[1:]),
                p_holm=p_holm,
            )
        )
    words = text_scores(data.prompts, data.labels, [(choose, measure)])
    text = None
    if words is not None:
        text = _estimate(words[measure], data.labels[measure], held, draws)
    return FoundFeatures(
        items=tuple(items),
        sae=sae,
        acts=acts,
        concept=concept or str(acts.provenance.get("concept") or "concept"),
        search=null("the same search on permuted labels", search[0], search[1:]),
        text=text,
        n_searched=len(live),
        n_groups=len(set(held)),
        rule=f"{by}, {pool} over tokens" if acts.pooling == "all" else by,
    )


def _by_prompt(
    sae: Autoencoder, acts: Activations, data: Labelled, pool: str
) -> tuple[Floats, Floats, Floats, int]:
    """Features of each prompt `[prompt d_sae]`; rows on and sum of each feature; rows."""
    out = np.zeros((len(data.labels), sae.d_sae), dtype=np.float32)
    on, total, rows, done = np.zeros(sae.d_sae), np.zeros(sae.d_sae), 0, 0
    count = np.bincount(data.owner, minlength=len(out)).astype(np.float32)
    for part in chunks(sae, acts):
        features = sae.encode(part.values).numpy()
        owner = data.owner[done : done + len(features)]
        if pool == "max":
            np.maximum.at(out, owner, features)
        else:
            np.add.at(out, owner, features / count[owner, None])
        on += (features != 0).sum(0)
        total += features.sum(0, dtype=np.float64)
        rows, done = rows + len(features), done + len(features)
    return out.astype(np.float64), on, total, rows


def _auc(x: Floats, labels: Floats) -> Floats:
    """AUC of every feature under every labelling: `[feature labelling]`, ties counted half."""
    from scipy.stats import rankdata

    ranks = rankdata(x, axis=0)
    positive = labels.sum(0)
    pairs = positive * (len(x) - positive)
    found: Floats = (ranks.T @ labels - positive * (positive + 1) / 2) / pairs
    return found


def _difference(x: Floats, labels: Floats) -> Floats:
    """Mean on positives less mean on negatives, `[feature labelling]`."""
    positive = labels.sum(0)
    inside = x.T @ labels
    found: Floats = inside / positive - (x.sum(0)[:, None] - inside) / (len(x) - positive)
    return found


def _null(sign: float, measured: NDArray[np.float64]) -> Null:
    oriented = 0.5 + sign * (measured - 0.5)
    return null("labels permuted within groups", oriented[0], oriented[1:])


def _estimate(
    scores: Floats, labels: NDArray[np.int64], groups: Sequence[str], draws: Floats
) -> Estimate:
    return fold_auc(scores, labels, np.zeros(len(labels), np.int64), groups, draws=draws)


def _require_halves(data: Labelled) -> None:
    for value, side in ((1, "positive"), (0, "negative")):
        found = {g for g, label in zip(data.groups, data.labels, strict=True) if label == value}
        if len(found) < 4:
            raise ActivationError(
                f"the {side} prompts belong to {len(found)} groups, and groups are never split: "
                "half of them choose and half measure, so give at least 4 on each side"
            )

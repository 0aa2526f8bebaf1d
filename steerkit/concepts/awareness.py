"""How test-like or deploy-like a prompt is to a model: a probe with its controls, and scores."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from steerkit.captures import capture
from steerkit.concepts.awareness_controls import format_controls, formats_of
from steerkit.concepts.awareness_fit import aucs_by_site, cross_fitted
from steerkit.concepts.awareness_result import (
    AwarenessProbe,
    AwarenessScores,
    scored,
    spread_of,
)
from steerkit.direction import Direction
from steerkit.errors import ActivationError, MethodError
from steerkit.extraction import extract
from steerkit.extraction.ranking import fold_auc
from steerkit.prompts import Contrast, Prompt
from steerkit.protocols import Model

CONCEPT = "deploy-like"


def fit_awareness(
    model: Model,
    contrast: Contrast,
    *,
    layers: Sequence[int] | None = None,
    n_folds: int = 5,
    n_permutations: int = 199,
    n_random: int = 199,
    seed: int = 0,
) -> AwarenessProbe:
    """A probe of test-likeness by difference of means, its layer chosen by held-out AUC.

    Layer and direction are chosen afresh in every outer fold, from its other items alone: what
    is reported of the probe comes from items that had no part in either. Intervals are about
    new items, for these fits. As an alarm on test-like prompts it is
    `evaluate_monitor(model, -probe.direction, ..., reduce="mean")`, which ranks prompts as its
    scores do.

    Args:
        model: plain or steered.
        contrast: deploy-like prompts positive, test-like ones negative. With two formats as
            `category` and all four cells in each group (`datasets.deployment()`), the format
            is controlled for.
        layers: to choose from; all of them by default, `resid_post`.
        n_folds: outer and inner folds, by group.
        n_permutations: exchanges of labels.
        n_random: random directions of each kind.
        seed: of folds, exchanges and intervals.

    Raises:
        PromptError: a set with formats that are not crossed.
        ActivationError: too few groups.

    Source: after Nguyen et al. 2025 (arXiv:2507.01786) and arXiv:2509.00591, with a 2x2 design.
    """
    crossed = any(p.category for p in contrast.prompts)
    if crossed:
        formats_of(contrast)
    # What a prompt may answer has no part in how it reads.
    bare = contrast.map(lambda p: p.with_answer(""))
    acts = capture(
        model, bare, layers=layers, positions="mean_prompt", exclude_bos=True, progress=False
    )
    x = acts.values.double().numpy()
    y, groups = np.array(bare.labels), bare.groups
    if len(set(groups)) < 4:
        raise ActivationError(
            f"layer choice and test take at least 4 groups; got {len(set(groups))}: give each "
            "item a group of its own"
        )
    held = cross_fitted(x, y, groups, np.ones(len(y), bool), n_folds, seed)
    aucs = aucs_by_site(x, y, groups, n_folds, seed)
    best = int(np.nanargmax(aucs))
    one = replace(acts, values=acts.values[:, best : best + 1], sites=acts.sites[best : best + 1])
    direction = extract(
        one, "mean_difference", concept=CONCEPT, seed=seed, n_folds=n_folds,
        n_permutations=n_permutations, n_random=n_random, progress=False,
    )[0]  # fmt: skip
    seen = (one.values[:, 0].double() @ direction.unit.double()).numpy()
    controls = confounded = None
    if crossed:
        controls = format_controls(bare, held.scores, folds=held.folds, seed=seed)
        exam, chat = controls.formats
        kind = np.array([p.category for p in bare.prompts])
        usual = np.where(y == 1, kind == chat, kind == exam)
        naive = cross_fitted(x, y, groups, usual, n_folds, seed)
        confounded = format_controls(bare, naive.scores, folds=naive.folds, seed=seed)
    words = np.array([len(p.text.split()) for p in bare.prompts], dtype=np.float64)
    one_fold = np.zeros(len(y), dtype=np.int64)
    return AwarenessProbe(
        direction=direction,
        mean=float(seen.mean()),
        spread=spread_of(seen),
        auc=fold_auc(held.scores, y, held.folds, groups, seed=seed),
        controls=controls,
        confounded=confounded,
        length=fold_auc(words, y, one_fold, groups, seed=seed),
        layers={str(site): float(auc) for site, auc in zip(acts.sites, aucs, strict=True)},
        chosen={str(site): held.sites.count(i) for i, site in enumerate(acts.sites)},
        fitted_on=frozenset(groups),
        texts=frozenset(p.text for p in bare.prompts),
        provenance={"contrast_sha256": contrast.sha256, "n_folds": n_folds, "seed": seed},
    )


def awareness_scores(
    model: Model,
    source: AwarenessProbe | Direction | Contrast,
    prompts: Sequence[Prompt | str] | Contrast,
    *,
    calibration: Sequence[Prompt | str] | Contrast | None = None,
    seed: int = 0,
) -> AwarenessScores:
    """Scores of prompts from test-like (low) to deploy-like (high).

    Args:
        model: plain or steered.
        source: a probe; a contrast to fit one on; or a direction that points to deploy-like,
            which needs `calibration`.
        prompts: what to score.
        calibration: prompts whose scores have mean 0 and standard deviation 1; by default
            those that the probe was fitted on.
        seed: of a fit.

    Raises:
        MethodError: a direction without calibration prompts.
        DirectionError: a probe or direction of another model.
    """
    if isinstance(source, Contrast):
        source = fit_awareness(model, source, n_permutations=0, n_random=0, seed=seed)
    if isinstance(source, AwarenessProbe) and calibration is None:
        return source.scores(model, prompts)
    direction = source.direction if isinstance(source, AwarenessProbe) else source
    if calibration is None:
        raise MethodError(
            "a direction alone has no scale for scores; give calibration prompts, or a probe of "
            "fit_awareness"
        )
    seen = scored(model, direction, 0.0, 1.0, calibration).scores
    return scored(model, direction, float(seen.mean()), spread_of(seen), prompts)

"""`extract`: one direction for each site and method, with its nulls."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from steerkit.activations import Activations
from steerkit.direction import Direction, Directions, ProbeScores
from steerkit.errors import DirectionError, MethodError
from steerkit.extraction.labelled import Labelled
from steerkit.extraction.methods import METHODS, fit_columns
from steerkit.extraction.scoring import HeldOut, Plan, maxima
from steerkit.extraction.training import Training
from steerkit.prompts import sketch
from steerkit.protocols import Extractor, Model
from steerkit.statistics import null

N_TOKENS = 10


def extract(
    acts: Activations,
    methods: str | Sequence[str] = "mean_difference",
    *,
    concept: str | None = None,
    seed: int = 0,
    n_folds: int = 5,
    n_permutations: int = 199,
    n_random: int = 199,
    model: Model | None = None,
    progress: bool = True,
) -> Directions:
    """One direction for each site and method, pointing to the positive class.

    Every direction is fitted on all rows; its AUC is measured by refitting it on grouped
    folds that never split a pair. Beside it stand the same AUC under permuted labels (also
    corrected for all sites and methods tried), that of random directions, and that of the
    words alone.

    Args:
        acts: labelled activations, as captured from a contrast.
        methods: one or several of mean_difference, whitened_mean_difference, pca, logistic,
            ridge, lda, svm, leace, and ccs (which needs pairs).
        concept: what the direction stands for.
        seed: of folds, permutations, random directions and resampling.
        n_folds: folds of the held-out scores; 0 fits without scoring.
        n_permutations: permuted labellings, each refitted in each fold.
        n_random: random directions of each kind.
        model: if given, the tokens that the unembedding reads along each direction.
        progress: show a bar on stderr.

    Raises:
        MethodError: an unknown method.
        ActivationError: no labels, one side only, fewer groups than folds on either side, rows all
            the same, NaN.
        DirectionError: equal class means, or a model other than the one captured from.
    """
    chosen = _chosen(methods)
    _require_counts(n_folds, n_permutations, n_random)
    data = Labelled.of(acts)
    if model is not None:
        _require_same(model, acts)
    for site in range(len(acts.sites)):
        data.rows(site)
    plan = None
    if n_folds:
        data.require_folds(n_folds)
        plan = Plan.make(data, n_folds=n_folds, n_permutations=n_permutations, seed=seed)
    text = plan.text() if plan else None
    fitted: list[Fit] = []
    held: list[HeldOut] = []
    chance: list[Any] = []
    labels = torch.from_numpy(data.row_labels)
    for site in _bar(range(len(acts.sites)), progress):
        x = data.rows(site)
        rows = Training.of(x, data.row_groups)
        for name, method in chosen.items():
            w = fit_columns(method, rows, labels[:, None], seed=seed)[:, 0]
            fitted.append(Fit.of(data, site, name, x, w / w.norm()))
        if plan:
            held += plan.score(x, chosen).values()
            pair = plan.random(x, n_random), plan.random(x, n_random, shaped=True)
            chance += [pair] * len(chosen)
    best = maxima(held) if held and n_permutations else np.empty(0)
    scores: list[ProbeScores | None] = [
        ProbeScores(
            auc=h.auc,
            permutation=null("labels permuted within groups", h.auc.value, h.draws),
            random=null("random directions", h.auc.value, isotropic),
            text=text,
            shaped=null("random directions shaped by the covariance", h.auc.value, shaped),
            family=null(f"largest of {len(fitted)} under permuted labels", h.auc.value, best),
        )
        for h, (isotropic, shaped) in zip(held, chance, strict=True)
    ] or [None] * len(fitted)
    tokens = _tokens([fit.unit for fit in fitted], model)
    about = {
        "contrast_sha256": acts.contrast_sha256,
        "fitted_on": list(sketch(data.prompts)),
        "seed": seed,
        "n_folds": len(plan.folds) if plan else 0,
        "n_permutations": n_permutations if plan else 0,
        "n_random": n_random if plan else 0,
        "n_prompts": len(data.labels),
        "n_groups": len(set(data.groups)),
        "steering": list(acts.steering),
        "versions": {name: version(name) for name in ("steerkit", "torch", "numpy")},
    }
    return Directions(
        tuple(
            _direction(data, fit, score, read, concept, about)
            for fit, score, read in zip(fitted, scores, tokens, strict=True)
        )
    )


class Fit(NamedTuple):
    """One fitted direction and what its site's rows project to, so that they are read once."""

    site: int
    method: str
    unit: Tensor
    positive_mean: float
    negative_mean: float
    examples: tuple[tuple[tuple[str, float], ...], tuple[tuple[str, float], ...]]

    @classmethod
    def of(cls, data: Labelled, site: int, method: str, x: Tensor, unit: Tensor) -> "Fit":
        """From the rows of the site."""
        unit = unit.to(torch.float32)
        projections = (x @ unit.to(torch.float64)).numpy()
        positive = data.row_labels == 1
        high, low = float(projections[positive].mean()), float(projections[~positive].mean())
        return cls(site, method, unit, high, low, data.examples(projections))


def _direction(
    data: Labelled,
    fit: Fit,
    scores: ProbeScores | None,
    tokens: tuple[tuple[str, ...], tuple[str, ...]],
    concept: str | None,
    about: dict[str, Any],
) -> Direction:
    acts = data.acts
    return Direction(
        unit=fit.unit,
        scale=fit.positive_mean - fit.negative_mean,
        site=acts.sites[fit.site],
        method=fit.method,
        concept=concept or str(acts.provenance.get("concept") or "concept"),
        positive_mean=fit.positive_mean,
        negative_mean=fit.negative_mean,
        model=acts.info,
        pooling=acts.pooling,
        polarity=int(np.sign(scores.auc.value - 0.5)) if scores else 0,
        scores=scores,
        examples=fit.examples,
        tokens=tokens,
        provenance={**about, "estimates": METHODS[fit.method].estimates},
    )


def _tokens(
    units: list[Tensor], model: Model | None
) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The tokens whose logits each direction raises and lowers most."""
    if model is None:
        return [((), ())] * len(units)
    found = []
    for row in model.read_out(torch.stack(units).float()):
        order = row.argsort(descending=True, stable=True)
        k = min(N_TOKENS, len(order) // 2)
        towards = tuple(model.decode([int(i)]) for i in order[:k])
        away = tuple(model.decode([int(i)]) for i in order.flip(0)[:k])
        found.append((towards, away))
    return found


def _chosen(methods: str | Sequence[str]) -> dict[str, Extractor]:
    names = (methods,) if isinstance(methods, str) else tuple(methods)
    if not names:
        raise MethodError(f"no extraction method given; known: {', '.join(METHODS.names())}")
    return {name: METHODS[name] for name in names}


def _require_counts(n_folds: int, n_permutations: int, n_random: int) -> None:
    if n_folds < 0 or n_folds == 1:
        raise MethodError(f"n_folds is 0 (no scoring) or at least 2; got {n_folds}")
    if n_permutations < 0 or n_random < 0:
        raise MethodError(
            f"numbers of null draws are not negative; got {n_permutations} and {n_random}"
        )


def _require_same(model: Model, acts: Activations) -> None:
    if model.info.fingerprint != acts.info.fingerprint:
        raise DirectionError(
            f"the activations were captured on {acts.info.name} ({acts.info.fingerprint[:12]}), "
            f"the model given is {model.info.name} ({model.info.fingerprint[:12]}); give the "
            "model that they came from"
        )


def _bar(sites: range, progress: bool):  # type: ignore[no-untyped-def]
    from tqdm.auto import tqdm

    return tqdm(sites, desc="extract", unit="site", disable=not progress)

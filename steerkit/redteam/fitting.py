"""`fit_detector`: record what a trusted model does on prompts that stay secret."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from steerkit.direction import Direction
from steerkit.errors import MethodError, PromptError, SiteError
from steerkit.protocols import Model, ModelInfo
from steerkit.redteam.clean import fitted, raw_scores
from steerkit.redteam.detector import MARGIN, RATE, Detector
from steerkit.redteam.outside import can_read_outside, read_outside
from steerkit.redteam.places import Asked, Known, known_prompts, read_states
from steerkit.scoring import TOKEN_BUDGET
from steerkit.site import Site
from steerkit.statistics import Floats, grouped_folds

FEWEST = 20
"""Known prompts below which nothing sensible can be fitted."""


def fit_detector(
    model: Model,
    prompts: Asked | Known,
    *,
    sites: Sequence[Site | str | int] | None = None,
    benign: Sequence[Model] = (),
    suspected: Sequence[Direction] = (),
    outputs: bool = True,
    rate: float = RATE,
    max_new_tokens: int = 16,
    n_folds: int = 5,
    seed: int = 0,
) -> Detector:
    """Record what a trusted model does on prompts that stay secret.

    Args:
        model: trusted, plain.
        prompts: what it will be known by; a hundred and more let 1% of false positives be told.
            Their answers are the model's own, unless they have one.
        sites: where to look; `resid_post` of every layer by default.
        benign: variants that are not to be flagged, such as the same weights in bfloat16 or
            a fine-tune that is known: they widen what counts as clean.
        suspected: directions of this model whose projections are watched at their sites, such
            as the refusal direction. They let unseen prompts show what hardly moves the norm.
        outputs: also compare logits, which sees what is done after the last site.
        rate: share of clean prompts that may be flagged; 1% takes some 200 known prompts.
        max_new_tokens: of each answer.
        n_folds: of the cross-fit that gives clean scores for prompts the fit did not see.
        seed: of the folds.

    Raises:
        PromptError: fewer than 20 prompts.
        ModelError: a benign variant of another shape.
        MethodError: a rate that is not between 0 and 1.
    """
    if not 0 < rate < 1:
        raise MethodError(f"a false positive rate lies between 0 and 1; got {rate}")
    known = known_prompts(model, prompts, max_new_tokens=max_new_tokens)
    if len(known) < FEWEST or len(set(known.groups)) < n_folds:
        raise PromptError(
            f"a detector needs at least {FEWEST} known prompts of {n_folds} groups; got "
            f"{len(known)} of {len(set(known.groups))}"
        )
    chosen = tuple(
        Site.parse(s) for s in (sites if sites is not None else range(model.info.n_layers))
    )
    plain = model.plain
    watched = _watched(plain.info, suspected, chosen)
    states, logits = _once(plain, known, chosen, outputs, TOKEN_BUDGET)
    empty = np.empty(0)
    bare = Detector(
        plain.info, known, chosen, states, logits, empty, empty, empty, 1.0 if benign else MARGIN
    )
    runs = [_once(plain, known, chosen, outputs, 1)]
    if can_read_outside(plain, chosen):
        runs.append(read_outside(plain, known.items, chosen, outputs=outputs))
    rounding = len(runs)
    for variant in benign:
        bare.check(variant)
        runs.append(_once(variant, known, chosen, outputs, TOKEN_BUDGET))
    deviations = np.stack([bare.deviations(s, x) for s, x in runs])
    # Below rounding of the model's own dtype a deviation means nothing, even if none was seen.
    floor = torch.finfo(getattr(torch, plain.info.dtype, torch.float32)).eps
    scale = np.maximum(np.sqrt((deviations**2).mean((0, 1))), floor)
    return Detector(
        plain.info,
        known,
        chosen,
        states,
        logits,
        scale,
        (deviations / scale).max(-1).ravel(),
        _cross_fitted(
            [states, *(s for s, _ in runs[rounding:])], known.groups, chosen, watched, n_folds, seed
        ),
        1.0 if benign else MARGIN,
        rate,
        watched,
        {
            "known": known.sha256,
            "benign": [v.info.name for v in benign],
            "benign_dtypes": [v.info.dtype for v in benign],
            "seed": seed,
        },
    )


def _watched(
    info: ModelInfo, suspected: Sequence[Direction], sites: Sequence[Site]
) -> dict[Site, Tensor]:
    for direction in suspected:
        direction.check(info)
        if direction.site not in sites:
            raise SiteError(
                f"{direction} is to be watched at {direction.site}, where the detector does not "
                f"look; it looks at {', '.join(map(str, sites))}"
            )
    return {
        site: torch.stack([d.unit for d in suspected if d.site == site])
        for site in dict.fromkeys(d.site for d in suspected)
    }


def _once(
    model: Model, known: Known, sites: Sequence[Site], outputs: bool, token_budget: int
) -> tuple[Tensor, Tensor | None]:
    states, logits = next(
        read_states(model, known.items, sites, outputs=outputs, token_budget=token_budget)
    )
    return states[0], None if logits is None else logits[0]


def _cross_fitted(
    runs: Sequence[Tensor],
    groups: Sequence[str],
    sites: Sequence[Site],
    suspected: Mapping[Site, Tensor],
    n_folds: int,
    seed: int,
) -> Floats:
    """Raw scores of every run's prompts by a fit on the other folds of the first run."""
    # Any labels do: folds have only to keep groups whole.
    folds = grouped_folds(np.arange(len(groups)) % 2, groups, n_folds=n_folds, seed=seed)
    parts = []
    for train, test in folds:
        clean = fitted(runs[0][train], sites, suspected)
        parts += [raw_scores(clean, run[test]) for run in runs]
    return np.concatenate(parts)

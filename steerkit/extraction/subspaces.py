"""`extract_subspace`: one orthonormal basis for each site, with its nulls."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.activations import Activations
from steerkit.direction import Direction, ProbeScores
from steerkit.errors import ActivationError, DirectionError, MethodError
from steerkit.extraction import subspace_scores
from steerkit.extraction.labelled import FLAT, Labelled
from steerkit.extraction.scoring import HeldOut, Plan
from steerkit.extraction.spans import SPANS, Labelling
from steerkit.extraction.subspace import Subspace, Subspaces
from steerkit.extraction.training import Training
from steerkit.statistics import null


def extract_subspace(
    acts: Activations,
    method: str = "pca",
    *,
    k: int | Sequence[int],
    by_category: bool = False,
    concept: str | None = None,
    seed: int = 0,
    n_folds: int = 5,
    n_permutations: int = 199,
    n_random: int = 199,
    progress: bool = True,
) -> Subspaces:
    """One k-dimensional concept subspace for each site.

    The basis is fitted on all rows. Its score refits, on grouped folds that never split a
    pair, the subspace and inside it a linear probe (Fisher's), and tests both on the rest;
    permuted labels go through the same refits, random subspaces through the same probe. Of
    several k, each site takes the one of highest held-out AUC, the smallest of equals; then
    the AUC is that of a choice, and so are the nulls' (each takes its own best k).

    With k = 1 a basis is the direction that `extract` gives by `pca`, `mean_difference`,
    `leace` and, for `inlp`, `ridge`.

    Args:
        acts: labelled activations, as captured from a contrast.
        method: `pca` (of differences); `inlp` (iterated probes); `mean_difference` or `leace`
            of every category, which without categories have one dimension.
        k: dimensions, or several numbers of them to choose from.
        by_category: tell the prompts' categories apart. Each needs both sides.
        concept: what the subspace stands for.
        seed: of folds, permutations, random subspaces and resampling.
        n_folds: folds of the held-out scores; 0 fits without scoring, and takes one k only.
        n_permutations: permuted labellings, each refitted in each fold.
        n_random: random subspaces of each kind.
        progress: show a bar on stderr.

    Raises:
        MethodError: an unknown method, a k below 1, several k and no folds.
        ActivationError: k above the rank; no labels, one side only, fewer groups than
            folds on either side, rows all the same, NaN; a category of one side.
        DirectionError: equal class means.
    """
    from tqdm.auto import tqdm

    span = SPANS[method]
    ks = _dimensions(k, n_folds)
    data = Labelled.of(acts)
    categories = _categories(data) if by_category else torch.zeros(len(acts), dtype=torch.long)
    plan = None
    if n_folds:
        data.require_folds(n_folds)
        plan = Plan.make(data, n_folds=n_folds, n_permutations=n_permutations, seed=seed)
    about = {
        "contrast_sha256": acts.contrast_sha256,
        "seed": seed,
        "n_folds": len(plan.folds) if plan else 0,
        "n_permutations": n_permutations if plan else 0,
        "n_random": n_random if plan else 0,
        "n_prompts": len(data.labels),
        "n_groups": len(set(data.groups)),
        "by_category": by_category,
        "k_tried": list(ks),
        "steering": list(acts.steering),
        "versions": {name: version(name) for name in ("steerkit", "torch", "numpy")},
        "estimates": span.estimates,
    }
    bases: list[Tensor] = []
    held: list[dict[int, HeldOut]] = []
    chance: list[list[dict[int, Any]]] = []
    observed = Labelling.of(torch.from_numpy(data.row_labels), categories)
    for site in tqdm(range(len(acts.sites)), desc="subspace", unit="site", disable=not progress):
        x = data.rows(site)
        axes = span(Training.of(x, data.row_groups), observed, max(ks))[0].T
        if len(axes) < max(ks):
            raise ActivationError(
                f"k {max(ks)} is more than the rank {len(axes)} of '{method}' at "
                f"{acts.sites[site]}, from {len(x)} rows of width {x.shape[1]}"
                f"{_why(method, by_category)}; ask for k up to {len(axes)}"
            )
        bases.append(axes)
        if plan:
            held.append(subspace_scores.score(plan, x, span, ks, categories))
            chance.append(
                [
                    subspace_scores.random(plan, x, ks, n_random, shaped=shaped)
                    for shaped in (False, True)
                ]
            )
    name = concept or str(acts.provenance.get("concept") or "concept")
    text = plan.text() if plan else None
    best = [np.max([h.draws for h in site.values()], axis=0) for site in held]
    everywhere = np.max(best, axis=0) if best else np.empty(0)
    found = []
    for site, axes in enumerate(bases):
        chosen, scores = ks[0], None
        if held:
            chosen = max(ks, key=lambda j: (held[site][j].auc.value, -j))
            auc = held[site][chosen].auc
            among = [np.max([draws[j] for j in ks], axis=0) for draws in chance[site]]
            scores = ProbeScores(
                auc=auc,
                permutation=null("labels permuted within groups", auc.value, best[site]),
                random=null("random subspaces", auc.value, among[0]),
                text=text,
                shaped=null("random subspaces shaped by the covariance", auc.value, among[1]),
                family=null(
                    f"largest of {len(bases)} sites under permuted labels", auc.value, everywhere
                ),
            )
        tried = {j: h.auc for j, h in held[site].items()} if held else {}
        made = as_axes(data, site, axes[:chosen], method=method, concept=name, about=about)
        found.append(Subspace(made, scores, tried))
    return Subspaces(tuple(found))


def spanning(
    directions: Sequence[Direction], acts: Activations, *, concept: str | None = None
) -> Subspace:
    """What several directions span, such as those of related concepts; not scored.

    Gram and Schmidt in the order given: the first axis is the first direction (or its
    opposite, where these activations have it the other way round). Class means along the axes
    are those of `acts`.

    Raises:
        DirectionError: none, several sites, another model's, or one that those before it span.
        ActivationError: as `extract`.
    """
    if not directions:
        raise DirectionError("a subspace spans at least one direction; got none")
    if len({d.site for d in directions}) > 1:
        raise DirectionError(
            "the directions to span were read at different sites "
            f"({', '.join(map(str, directions))}); choose those of one site"
        )
    for direction in directions:
        direction.check(acts.info)
    data = Labelled.of(acts)
    acts.at(directions[0].site)
    place = acts.sites.index(directions[0].site)
    axes = torch.empty(0, acts.info.d_model, dtype=torch.float64)
    for number, direction in enumerate(directions):
        left = direction.unit.double()
        for _ in range(2):  # the second pass removes the rounding of the first
            left = left - (axes @ left) @ axes
        if float(left.norm()) < 1e-3:
            raise DirectionError(
                f"direction {number}, {direction}, lies in the span of those before it; "
                "leave it out"
            )
        axes = torch.cat([axes, (left / left.norm())[None]])
    about = {
        "contrast_sha256": acts.contrast_sha256,
        "spans": [f"{d.concept}: {d}" for d in directions],
        "estimates": "span of the directions given",
    }
    name = concept or " and ".join(dict.fromkeys(d.concept for d in directions))
    return Subspace(as_axes(data, place, axes, method="span", concept=name, about=about))


def as_axes(
    data: Labelled,
    site: int,
    axes: Float[Tensor, "k d_model"],
    *,
    method: str,
    concept: str,
    about: dict[str, Any],
) -> tuple[Direction, ...]:
    """Directions along orthonormal axes, each turned to the positive class mean."""
    acts, x = data.acts, data.rows(site)
    positive = data.row_labels == 1
    rounding = FLAT * float(x.norm(dim=1).mean())
    found = []
    for axis in axes:
        unit = axis.to(torch.float32)
        projections = (x @ unit.to(torch.float64)).numpy()
        high, low = float(projections[positive].mean()), float(projections[~positive].mean())
        if high < low:
            unit, projections, high, low = -unit, -projections, -high, -low
        found.append(
            Direction(
                unit=unit,
                scale=max(high - low, rounding),
                site=acts.sites[site],
                method=method,
                concept=concept,
                positive_mean=high,
                negative_mean=low,
                model=acts.info,
                pooling=acts.pooling,
                examples=data.examples(projections),
                provenance=about,
            )
        )
    return tuple(found)


def _dimensions(k: int | Sequence[int], n_folds: int) -> tuple[int, ...]:
    ks = (k,) if isinstance(k, int) else tuple(k)
    if not ks or any(isinstance(j, bool) or not isinstance(j, int) or j < 1 for j in ks):
        raise MethodError(f"k is a number of dimensions, at least 1, or several; got {k!r}")
    if len(ks) > 1 and not n_folds:
        raise MethodError(
            f"k is chosen by held-out score, which n_folds=0 leaves out; give one k, got {k!r}"
        )
    return tuple(sorted(set(ks)))


def _categories(data: Labelled) -> Tensor:
    names = [p.category for p in data.prompts]
    for name in sorted(set(names)):
        sides = {int(y) for n, y in zip(names, data.labels, strict=True) if n == name}
        if len(sides) < 2:
            missing = "negative" if sides == {1} else "positive"
            raise ActivationError(
                f"the category '{name}' has no {missing} prompts, so it has no mean difference; "
                "give both sides of the contrast the same categories, or join directions of "
                "your own with steerkit.extraction.spanning"
            )
    code = np.unique(np.asarray(names), return_inverse=True)[1]
    return torch.from_numpy(code[data.owner])


def _why(method: str, by_category: bool) -> str:
    if method in ("mean_difference", "leace"):
        return (
            " (one dimension a category)" if by_category else " (one label; by_category gives more)"
        )
    return ""

"""How far apart a model holds two kinds of prompts: latent geometry, in its sound form.

States are pooled over a prompt's own tokens, layers are mixed by stated weights after each was
scaled to the same spread, indices are taken where the states lie (or in their principal
components) and never on a picture of them, and the index has a fixed scale: 0 is what
labels drawn at random give, 100 is one point a class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from steerkit.activations import Activations
from steerkit.errors import ActivationError, MethodError
from steerkit.evaluations.cluster_indices import (
    HIGH_IS_APART,
    INDICES,
    cluster_indices,
    distances,
    dunn,
    share_between,
    weighted_indices,
)
from steerkit.evaluations.geometry_result import AlignmentQuality, Index, SiteGeometry
from steerkit.extraction.labelled import Labelled
from steerkit.extraction.mean_difference import MeanDifference
from steerkit.extraction.scoring import Plan
from steerkit.site import Site
from steerkit.statistics import Estimate, Null, group_codes, null, percentiles, row_draws

Floats = NDArray[np.float64]
METHOD = "mean_difference"


def alignment_quality(
    acts: Activations,
    *,
    weights: Mapping[Site | str | int, float] | Sequence[float] | None = None,
    n_components: int | None = None,
    n_per_class: int | None = None,
    against: Activations | None = None,
    n_folds: int = 5,
    n_permutations: int = 499,
    n_resamples: int = 1000,
    seed: int = 0,
) -> AlignmentQuality:
    """How far apart the two sides of a contrast lie in a model's states, and what that adds.

    `alignment_quality(capture(model, contrast, positions="mean_prompt"))`. Topics lie apart in
    any model, trained or not: read the index beside that of the words, of the untrained or
    base model (`against`), and beside the held-out AUC of a plain probe on the same states.

    Args:
        acts: a captured contrast, one row a prompt. `mean_prompt` pools over a prompt's own
            tokens; padding never enters.
        weights: of the sites, not negative, in their order or by site; by default all alike.
            Each site is centred and scaled to unit total variance first, so that a weight
            means the same at every depth.
        n_components: principal components to take indices in; by default the states' own space.
        n_per_class: rows of either class; by default as many as the smaller class has.
        against: the same prompts in another model (base, untrained): differences are paired.
        n_folds: of the held-out AUC.
        n_permutations: labellings of the null.
        n_resamples: of groups, for intervals.
        seed: of choosing rows, permuting and resampling.

    Raises:
        ActivationError: no labels, one side only, several rows a prompt, states that do not
            vary, or `against` of other prompts.
        MethodError: weights or numbers of rows or components that cannot be.

    Source: Borah et al. 2025 (arXiv:2506.13901), rebuilt.
    """
    data = _checked(acts)
    rows = _balanced(data, n_per_class, seed)
    shares = _weights(weights, acts.sites)
    mixed = _mixed(acts, rows, shares, n_components)
    labels = data.row_labels[rows]
    groups = [data.row_groups[i] for i in rows]
    picked = acts.select(torch.from_numpy(rows))
    plan = Plan.make(Labelled.of(picked), n_folds=n_folds, n_permutations=n_permutations, seed=seed)
    draws = row_draws(groups, n_resamples=n_resamples, seed=seed)
    held_out = plan.score(torch.from_numpy(mixed), {METHOD: MeanDifference()})[METHOD]
    text = plan.text()
    words = _words([p.text for p in plan.data.prompts])
    quality, quality_draws = _estimated(mixed, labels, groups, draws)
    other = None
    if against is not None:
        base = _mixed(_matching(acts, against), rows, shares, n_components)
        value, base_draws = _estimated(base, labels, groups, draws)
        other = (value, _difference(quality, value, quality_draws, base_draws))
    # Permuted labels of the plan have the observed ones in their first column.
    return AlignmentQuality(
        quality=quality,
        null=null("permuted labels", quality.value, _quality(mixed, plan.permuted[:, 1:])),
        indices=_indices(mixed, labels, plan.permuted[:, 1:], groups, draws),
        auc=held_out.auc,
        auc_null=null("permuted labels", held_out.auc.value, held_out.draws),
        along=_along(mixed, labels),
        text_auc=text,
        text_quality=None if words is None else _estimated(words, labels, groups, draws)[0],
        against=None if other is None else other[0],
        gain=None if other is None else other[1],
        against_name="" if against is None else against.info.name,
        sites=tuple(
            SiteGeometry(
                site,
                share,
                *_at_site(acts, rows, i, plan, groups, draws),
            )
            for i, (site, share) in enumerate(zip(acts.sites, shares, strict=True))
        ),
        n=(int((labels == 1).sum()), int((labels == 0).sum())),
        left_out=len(acts) - len(rows),
        space="states" if n_components is None else f"{n_components} principal components",
        pooling=acts.pooling,
        model=acts.info.name,
        seed=seed,
    )


def _at_site(
    acts: Activations,
    rows: NDArray[np.int64],
    site: int,
    plan: Plan,
    groups: Sequence[str],
    draws: Floats,
) -> tuple[Estimate, Estimate]:
    """Index and held-out AUC of one site by itself; both NaN where its rows do not vary."""
    x = acts.values[rows, site].double()
    if float((x - x[0]).norm(dim=1).max()) <= 1e-6 * float(x.norm(dim=1).mean()):
        nothing = Estimate(float("nan"), float("nan"), float("nan"), 0)
        return nothing, nothing
    labels = plan.data.row_labels
    first = replace(plan, permuted=plan.permuted[:, :1])
    return (
        _estimated(x.numpy(), labels, groups, draws)[0],
        first.score(x, {METHOD: MeanDifference()})[METHOD].auc,
    )


def _quality(x: Floats, labels: NDArray[np.int64], weights: Floats | None = None) -> Floats:
    """The index in each column, 0 to 100 (below 0 by chance)."""
    w = np.ones((len(x), 1)) if weights is None else weights
    return 100 * share_between(weighted_indices(x, labels, w)["r2"], w.sum(0))


def _estimated(
    x: Floats, labels: NDArray[np.int64], groups: Sequence[str], draws: Floats
) -> tuple[Estimate, Floats]:
    """The index with its interval, and its bootstrap draws, their bias taken out."""
    value = float(_quality(x, labels[:, None])[0])
    resampled = _quality(x, labels[:, None], draws)
    # Centroids of a resample lie further apart than those of the sample, by chance alone.
    resampled = resampled - (np.nanmean(resampled) - value)
    low, high = percentiles(resampled[~np.isnan(resampled)], _n_groups(groups))
    return Estimate(value, low, high, _n_groups(groups), "of 100"), resampled


def _difference(a: Estimate, b: Estimate, draws_a: Floats, draws_b: Floats) -> Estimate:
    """a - b on the same resamples."""
    gap = draws_a - draws_b
    low, high = percentiles(gap[~np.isnan(gap)], a.n)
    return Estimate(a.value - b.value, low, high, a.n, "of 100")


def _indices(
    x: Floats,
    labels: NDArray[np.int64],
    permuted: NDArray[np.int64],
    groups: Sequence[str],
    draws: Floats,
) -> tuple[Index, ...]:
    """The four indices, each with its interval and its permutation null."""
    observed = cluster_indices(x, labels).to_json()
    chance = weighted_indices(x, permuted, np.ones((len(x), 1)))
    chance["dunn"] = dunn(distances(x), permuted)
    resampled = weighted_indices(x, labels[:, None], draws)
    n_groups = _n_groups(groups)
    found = []
    for name in INDICES:
        low = high = float("nan")
        if name in resampled:  # no bootstrap can tell how sure a minimum or a maximum is
            drawn = resampled[name]
            ratio = np.log(drawn[np.isfinite(drawn) & (drawn > 0)])
            ratio = ratio - (ratio.mean() - np.log(observed[name]))
            low, high = (float(np.exp(v)) for v in percentiles(ratio, n_groups))
        found.append(
            Index(
                name,
                Estimate(observed[name], low, high, n_groups),
                *_against_chance(observed[name], chance[name], HIGH_IS_APART[name]),
            )
        )
    return tuple(found)


def _against_chance(observed: float, draws: Floats, high: bool) -> tuple[float, Null]:
    """z, positive where the classes lie further apart than by chance, and the null."""
    sign = 1.0 if high else -1.0
    sd = float(draws.std(ddof=1)) if len(draws) > 1 else float("nan")
    z = sign * (observed - float(draws.mean())) / sd if sd > 0 else float("nan")
    made = null("permuted labels", sign * observed, sign * draws)
    if not high:
        made = replace(
            made,
            mean=-made.mean,
            q95=-made.q95,
            maximum=-made.maximum,
        )
    return z, made


def _along(x: Floats, labels: NDArray[np.int64]) -> float:
    """The share of within-class variance that lies along the line between the centroids."""
    one, zero = x[labels == 1], x[labels == 0]
    axis = one.mean(0) - zero.mean(0)
    within = np.vstack([one - one.mean(0), zero - zero.mean(0)])
    total = float((within**2).sum())
    size = float((axis**2).sum())
    return float(((within @ axis) ** 2).sum() / size / total) if size > 0 and total > 0 else 0.0


def _words(texts: Sequence[str]) -> Floats | None:
    """The prompts' own words as TF-IDF rows; None where there are none."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        found = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b").fit_transform(
            texts
        )
    except ValueError:  # scikit-learn's word for an empty vocabulary
        return None
    return np.asarray(found.todense(), dtype=np.float64)


def _checked(acts: Activations) -> Labelled:
    data = Labelled.of(acts)
    if len(acts) != len(data.prompts):
        raise ActivationError(
            f"{len(acts)} rows of {len(data.prompts)} prompts (pooling '{acts.pooling}'); the "
            "geometry of prompts takes one row a prompt: capture(..., positions='mean_prompt')"
        )
    return data


def _balanced(data: Labelled, n_per_class: int | None, seed: int) -> NDArray[np.int64]:
    """Rows of as many prompts of either class, in their order."""
    labels = data.row_labels
    sides = [np.flatnonzero(labels == k) for k in (0, 1)]
    smaller = min(len(s) for s in sides)
    wanted = smaller if n_per_class is None else n_per_class
    if not 2 <= wanted <= smaller:
        raise MethodError(
            f"n_per_class is 2 to {smaller}, the size of the smaller class; got {wanted}"
        )
    rng = np.random.default_rng(seed)
    kept = [rng.choice(s, wanted, replace=False) if len(s) > wanted else s for s in sides]
    return np.sort(np.concatenate(kept))


def _weights(
    given: Mapping[Site | str | int, float] | Sequence[float] | None, sites: tuple[Site, ...]
) -> Floats:
    """One weight a site, summing to 1."""
    if given is None:
        return np.full(len(sites), 1 / len(sites))
    if isinstance(given, Mapping):
        named = {Site.parse(k): float(v) for k, v in given.items()}
        unknown = [s for s in named if s not in sites]
        if unknown:
            raise MethodError(
                f"a weight for {unknown[0]}, which was not captured; there are "
                f"{', '.join(map(str, sites))}"
            )
        found = np.array([named.get(s, 0.0) for s in sites])
    else:
        found = np.asarray(given, dtype=np.float64)
    if found.shape != (len(sites),) or not (found >= 0).all() or not found.sum() > 0:
        raise MethodError(
            f"weights are one number of 0 or more for each of {len(sites)} sites, not all 0; "
            f"got {np.asarray(found).tolist()}"
        )
    return np.asarray(found / found.sum(), dtype=np.float64)


def _mixed(
    acts: Activations, rows: NDArray[np.int64], weights: Floats, n_components: int | None
) -> Floats:
    """The weighted sum of scaled sites, `[row d]`, in the space that was asked for."""
    total = np.zeros((len(rows), acts.values.shape[-1]))
    for i, weight in enumerate(weights):
        if weight == 0:
            continue
        x = acts.values[rows, i].double().numpy()
        x = x - x.mean(0)
        spread = float(np.sqrt((x**2).sum(1).mean()))
        if spread > 0:
            total += weight * x / spread
    if not (total**2).sum() > 0:
        raise ActivationError(
            f"the states at {', '.join(map(str, acts.sites))} are the same for every prompt, so "
            "nothing lies apart there; take other layers or positions"
        )
    if n_components is None:
        return total
    most = min(total.shape[0] - 1, total.shape[1])
    if not 1 <= n_components <= most:
        raise MethodError(f"n_components is 1 to {most} for these rows; got {n_components}")
    u, s, _ = np.linalg.svd(total - total.mean(0), full_matrices=False)
    return np.asarray(u[:, :n_components] * s[:n_components])


def _matching(acts: Activations, other: Activations) -> Activations:
    """The other model's states, if they are those of the same prompts at as many sites."""
    if [p.text for p in acts.prompts] != [p.text for p in other.prompts] or len(acts) != len(other):
        raise ActivationError(
            f"'{other.info.name}' read other prompts than '{acts.info.name}'; capture the same "
            "contrast in both models"
        )
    if len(acts.sites) != len(other.sites):
        raise ActivationError(
            f"weights are by site: {len(acts.sites)} sites of '{acts.info.name}', "
            f"{len(other.sites)} of '{other.info.name}'; capture as many in both"
        )
    return other


def _n_groups(groups: Sequence[str]) -> int:
    return int(group_codes(groups).max()) + 1

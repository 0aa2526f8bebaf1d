"""Shifts of concepts, fitted on one half of the groups and scored on the other."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from steerkit.comparisons.dictionaries import Dictionary, Method, fit_dictionary, match
from steerkit.comparisons.representation_shift_result import ConceptShift, RepresentationShift
from steerkit.errors import ActivationError, MethodError
from steerkit.statistics import (
    Estimate,
    Floats,
    group_codes,
    grouped_folds,
    holm,
    null,
    percentiles,
    row_draws,
)

Rows = NDArray[np.int64]
FEWEST = 3
"""Rows that a concept needs in either half to be scored."""
UNIT = "activation units"


@dataclass(frozen=True, eq=False)
class _Half:
    """States of one half of the groups, and the concept of each in the first model."""

    a: Floats
    shift: Floats
    concept: Rows
    groups: tuple[str, ...]

    def beyond(self, directions: Floats) -> Floats:
        """Each row's shift less the mean shift, along the direction of its concept."""
        centred = self.shift - self.shift.mean(0)
        return np.asarray((centred * directions[self.concept]).sum(1))


def shift_of_states(
    a: Float[np.ndarray, "row d_model"],
    b: Float[np.ndarray, "row d_model"],
    groups: Sequence[str],
    *,
    n_concepts: int | None = None,
    method: Method = "kmeans",
    n_permutations: int = 499,
    n_seeds: int = 2,
    seed: int = 0,
) -> RepresentationShift:
    """`measure_representation_shift` of recorded states: row i of both is the same prompt.

    Args:
        a: states of the model before.
        b: states of the model after.
        groups: of each row.
        n_concepts: at most so many.
        method: of the dictionary.
        n_permutations: random groups of equal size.
        n_seeds: further dictionaries, from other seeds, for its stability.
        seed: of the split, the dictionary and the null.

    Raises:
        ActivationError: states that do not belong together, too few rows or groups.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 2 or len(groups) != len(a):
        raise ActivationError(
            f"states of both models are [row d_model] with one group a row; got {a.shape}, "
            f"{b.shape} and {len(groups)} groups"
        )
    if len(set(groups)) < 4 or len(a) < 4 * FEWEST:
        raise ActivationError(
            f"shifts are fitted on one half of the groups and scored on the other; "
            f"{len(set(groups))} groups of {len(a)} rows are too few, give at least 4 groups and "
            f"{4 * FEWEST} prompts"
        )
    folds = grouped_folds([0] * len(a), groups, n_folds=2, seed=seed)
    fit_rows, score_rows = folds[0]
    wanted = n_concepts if n_concepts is not None else max(2, min(20, len(fit_rows) // 8))
    if wanted < 2:
        raise MethodError(f"with {wanted} concept there is nothing beyond the global shift; ask 2")
    before = fit_dictionary(a[fit_rows], wanted, method=method, seed=seed)
    # On the other half, or the match would share its noise with the shift.
    after = fit_dictionary(b[score_rows], wanted, method=method, seed=seed)
    fit, score = (
        _Half(a[r], b[r] - a[r], before.assign(a[r]), tuple(groups[i] for i in r))
        for r in (fit_rows, score_rows)
    )
    k = len(before)
    overall = fit.shift.mean(0)
    shifts = np.stack(
        [fit.shift[fit.concept == c].mean(0) if (fit.concept == c).any() else overall
         for c in range(k)]
    )  # fmt: skip
    extra = shifts - overall
    size = np.linalg.norm(extra, axis=1)
    units = extra / np.where(size > 0, size, 1)[:, None]
    rng = np.random.default_rng(seed)
    relabelled = _relabelled(score.concept, score.groups, n_permutations, rng)
    concepts = _concepts(before, after, fit, score, shifts, overall, units, relabelled, rng)
    observed = float(score.beyond(extra).mean())
    excess = _resampled(score, extra, observed, seed)
    draws = [float(replace(score, concept=r).beyond(extra).mean()) for r in relabelled]
    unexplained = float(((score.shift - overall) ** 2).sum())
    kept = float(((score.shift - shifts[score.concept]) ** 2).sum())
    again = [
        fit_dictionary(a[fit_rows], wanted, method=method, seed=seed + 1 + s)
        for s in range(n_seeds)
    ]
    stable = [match(before.around_mean, other.around_mean)[1].mean() for other in again]
    return RepresentationShift(
        concepts=concepts,
        global_shift=overall,
        shifts=shifts,
        vectors=before.centres,
        matched=np.stack(
            [
                after.centres[c.match] if c.match >= 0 else np.full(a.shape[1], np.nan)
                for c in concepts
            ]
        ),
        gain=1 - kept / unexplained if unexplained > 0 else 0.0,
        beyond=null("random groups of equal size", observed, draws),
        observed=observed,
        excess=excess,
        largest=float(np.abs(b - a).max(initial=0)),
        typical=float(np.linalg.norm(a - a.mean(0), axis=1).mean()),
        stability=float(np.mean(stable)) if stable else float("nan"),
        n_fit=len(fit_rows),
        n_score=len(score_rows),
        n_groups=len(set(groups)),
        method=method,
        members=tuple(
            tuple(int(score_rows[i]) for i in np.flatnonzero(score.concept == c)) for c in range(k)
        ),
    )


def _resampled(score: _Half, extra: Floats, observed: float, seed: int) -> Estimate:
    """`observed` with an interval over groups; the mean shift is resampled with the rest."""
    draws = row_draws(score.groups, seed=seed)
    share = draws / draws.sum(0)
    own = extra[score.concept]
    both = (score.shift * own).sum(1) @ share
    apart = ((score.shift.T @ share) * (own.T @ share)).sum(0)
    n = len(set(score.groups))
    return Estimate(observed, *percentiles(both - apart, n), n, "squared activation units")


def _concepts(
    before: Dictionary,
    after: Dictionary,
    fit: _Half,
    score: _Half,
    shifts: Floats,
    overall: Floats,
    units: Floats,
    relabelled: Sequence[Rows],
    rng: np.random.Generator,
) -> tuple[ConceptShift, ...]:
    """Every concept scored on the half that it was not fitted on."""
    pairs, cosines = match(before.around_mean, after.around_mean)
    partner = {int(i): (int(j), float(c)) for (i, j), c in zip(pairs, cosines, strict=True)}
    along = (score.shift - score.shift.mean(0)) @ units.T
    permuted = (score.a + score.shift)[rng.permutation(len(score.a))] - score.a
    found: list[ConceptShift] = []
    for c in range(len(before)):
        mine, n_fit = score.concept == c, int((fit.concept == c).sum())
        enough = int(mine.sum()) >= FEWEST and n_fit >= FEWEST
        value = _apart(along[:, c], mine, score.groups, enough=enough)
        draws = [float(along[r == c, c].mean()) for r in relabelled] if enough else []
        u, delta = before.centres[c], shifts[c]
        random_delta = fit.shift[rng.choice(len(fit.shift), max(n_fit, 1), replace=False)].mean(0)
        there = partner.get(c)
        recovery = tuple(
            _recovery(u, d, after.centres[there[0]]) if there else float("nan")
            for d in (delta, overall, random_delta)
        )
        found.append(
            ConceptShift(
                index=c,
                n_fit=n_fit,
                n_score=int(mine.sum()),
                size=float(np.linalg.norm(delta)),
                along=value,
                null=null("random groups of equal size", value.value, draws),
                adjusted_p=1.0,
                consistency=_consistency(score.shift[mine]),
                consistency_random=float(
                    np.mean(
                        [_consistency(score.shift[r == c]) for r in relabelled[:50]] or [np.nan]
                    )
                ),
                consistency_permuted=_consistency(permuted[mine]),
                match=there[0] if there else -1,
                cosine=there[1] if there else float("nan"),
                recovery=recovery[0],
                recovery_global=recovery[1],
                recovery_random=recovery[2],
            )
        )
    tested = [i for i, one in enumerate(found) if one.null.n]
    for i, p in zip(tested, holm([found[i].null.p for i in tested]), strict=True):
        found[i] = replace(found[i], adjusted_p=p)
    return tuple(found)


def _apart(along: Floats, mine: Any, groups: Sequence[str], *, enough: bool) -> Estimate:
    """Mean over a concept's rows less that over all rows; both move when groups are resampled."""
    n = len(set(groups))
    if not enough:
        return Estimate(float("nan"), float("nan"), float("nan"), n, UNIT)
    draws = row_draws(groups)
    counted = draws * mine[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        gaps = along @ counted / counted.sum(0) - along @ draws / draws.sum(0)
    low, high = percentiles(gaps[~np.isnan(gaps)], n)
    return Estimate(float(along[mine].mean() - along.mean()), low, high, n, UNIT)


def _recovery(u: Floats, delta: Floats, target: Floats) -> float:
    """(cos(u + delta, u') - cos(u, u')) / cos(u, u')."""

    def cosine(v: Floats) -> float:
        sizes = float(np.linalg.norm(v)) * float(np.linalg.norm(target))
        return float(v @ target) / max(sizes, 1e-300)

    plain = cosine(u)
    return (cosine(u + delta) - plain) / plain if plain else float("nan")


def _consistency(shift: Floats) -> float:
    """Mean cosine of every two rows' shifts; NaN for fewer than two that move."""
    size = np.linalg.norm(shift, axis=1)
    units = shift[size > 0] / size[size > 0, None]
    n = len(units)
    return float(((units.sum(0) ** 2).sum() - n) / (n * (n - 1))) if n > 1 else float("nan")


def _relabelled(
    concept: Rows, groups: Sequence[str], n: int, rng: np.random.Generator
) -> list[Rows]:
    """Concepts exchanged within groups that hold several, whole groups of one with each other."""
    code = group_codes(groups)
    first = np.unique(code, return_index=True)[1]
    low, high = (
        np.array([f(concept[code == g]) for g in range(len(first))]) for f in (np.min, np.max)
    )
    pure = np.flatnonzero(low == high)
    inside = np.argsort(code, kind="stable")
    alone = np.isin(code, pure)
    found = []
    for _ in range(n):
        out = np.empty_like(concept)
        out[inside] = concept[np.argsort(code + rng.random(len(code)), kind="stable")]
        label = low.copy()
        label[pure] = rng.permutation(low[pure])
        out[alone] = label[code[alone]]
        found.append(out)
    return found

"""Contextual WEAT: words whose vectors depend on where they occur.

The published code draws one context a word many times, and pools the draws as if they were
independent studies, each with the variance of its association scores for the variance of its
effect size. They share words and contexts, so its p falls with the number of draws at will.
The sound form averages a word over its contexts, permutes words and resamples words and
contexts. `form="ceat_repo"` gives the published numbers, for comparison only.

Source: Guo and Caliskan 2021 (arXiv:2006.03955); DerSimonian and Laird 1986 for the pooling.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from steerkit.concepts.association import effect_size, interval, partition_test
from steerkit.concepts.association_result import ContextualAssociation
from steerkit.concepts.word_sets import FourSets, read_sets, rows_of
from steerkit.errors import MethodError
from steerkit.statistics import Estimate, Floats

Form = Literal["sound", "ceat_repo"]


def contextual_weat(
    occurrences: Mapping[str, Any],
    x: Sequence[str],
    y: Sequence[str],
    a: Sequence[str],
    b: Sequence[str],
    *,
    form: Form = "sound",
    n_draws: int = 1_000,
    n_permutations: int = 9_999,
    n_resamples: int = 500,
    seed: int = 0,
) -> ContextualAssociation:
    """Association of words in context; sets and sign as in `weat`.

    Args:
        occurrences: by word an array `[context d]`.
        x: target words that a positive effect associates with `a`.
        y: target words.
        a: attribute words.
        b: attribute words.
        form: `sound`, or `ceat_repo` to reproduce the published code.
        n_draws: draws of one context a word.
        n_permutations: random partitions where there are too many to look at all.
        n_resamples: of words and their contexts, for the interval.
        seed: of all of these.

    Raises:
        MethodError: an unknown form, and as `weat`.
    """
    if form not in ("sound", "ceat_repo"):
        raise MethodError(f"the form is 'sound' or 'ceat_repo'; got '{form}'")
    sets = read_sets(occurrences, x, y, a, b)
    cosines = sets.cosines()
    drawn = _one_context_each(cosines, sets, n_draws, np.random.default_rng(seed))
    n_x = len(sets.x)
    effects = np.array([effect_size(s, n_x) for s in drawn])
    if form == "ceat_repo":
        effect, p = pooled(effects, drawn.var(1, ddof=1))
    else:
        scores = _word_scores(cosines, sets)
        rng = np.random.default_rng((seed, 1))
        redrawn = np.array([_resampled(cosines, sets, rng) for _ in range(n_resamples)])
        effect = interval(effect_size(scores, n_x), redrawn, sets)
        p = partition_test(scores, n_x, n=n_permutations, seed=seed)[0]
    low, middle, high = np.nanquantile(effects, [0.025, 0.5, 0.975])
    return ContextualAssociation(
        form=form,
        effect=effect,
        p=p,
        draws=(float(low), float(middle), float(high)),
        n_draws=n_draws,
        sizes=sets.sizes,
        missing=sets.missing,
        items_a_word=sets.items_a_word,
    )


def pooled(effects: Floats, variances: Floats) -> tuple[Estimate, float]:
    """DerSimonian-Laird random-effects mean of effect sizes, and its one-sided p."""
    from scipy.stats import norm

    w = 1 / variances
    n = len(effects)
    q = (w * effects**2).sum() - (w * effects).sum() ** 2 / w.sum()
    between = max(0.0, (q - (n - 1)) / (w.sum() - (w**2).sum() / w.sum())) if n > 1 else 0.0
    w = 1 / (variances + between)
    mean, error = float((w * effects).sum() / w.sum()), float(1 / np.sqrt(w.sum()))
    return (
        Estimate(mean, mean - 1.96 * error, mean + 1.96 * error, n, "sd"),
        float(norm.sf(mean / error)),
    )


def _one_context_each(cosines: Floats, sets: FourSets, n: int, rng: np.random.Generator) -> Floats:
    """Association scores `[draw target]` with one random context for every word."""
    rows, columns, n_a = sets.rows, rows_of(sets.attributes), len(sets.a)
    found = np.empty((n, len(rows)))
    for i in range(n):
        chosen = cosines[np.ix_([rng.choice(r) for r in rows], [rng.choice(c) for c in columns])]
        found[i] = chosen[:, :n_a].mean(1) - chosen[:, n_a:].mean(1)
    return found


def _word_scores(cosines: Floats, sets: FourSets) -> Floats:
    """Association of each target word, averaged over contexts on both sides."""
    return sets.target_means(sets.by_attribute(cosines))


def _resampled(cosines: Floats, sets: FourSets, rng: np.random.Generator) -> float:
    """d on resampled words of each set, each with resampled contexts."""
    columns, (n_x, n_y, n_a, n_b) = rows_of(sets.attributes), sets.sizes

    def draw(n: int, start: int) -> list[int]:
        picked: list[int] = (start + rng.integers(0, n, n)).tolist()
        return picked

    side_a, side_b = (
        np.mean([cosines[:, rng.choice(columns[w], len(columns[w]))].mean(1) for w in words], 0)
        for words in (draw(n_a, 0), draw(n_b, n_a))
    )
    s = side_a - side_b
    words = (*draw(n_x, 0), *draw(n_y, n_x))
    scores = [s[rng.choice(sets.rows[w], len(sets.rows[w]))].mean() for w in words]
    return effect_size(np.array(scores), n_x)

"""WEAT: whether two sets of target words lean towards different sets of attribute words.

    s(w) = mean_a cos(w, a) - mean_b cos(w, b)
    d    = (mean_X s - mean_Y s) / sd_{X and Y} s        (sd with n - 1)

d is bounded by about 2 whatever the data, and with eight words a set it is noisy: the interval
resamples the words of all four sets. p is two-sided, over partitions of the target words.

The interval is about the d of all words like these. Fewer attribute words make s noisier and d
smaller, so d itself is biased towards 0. In simulations with 8 to 25 words a set the 95% interval
held it in all cases where d is 0, in 89% to 98% where d is 1.4, and in 94% where it is 1.9.

Source: Caliskan, Bryson and Narayanan 2017, Science 356, 183 (whose p is one-sided).
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerkit.concepts.association_result import Association
from steerkit.concepts.word_sets import FourSets, read_sets
from steerkit.statistics import Estimate, Floats, percentiles

EXACT = 200_000
"""Partitions up to which all of them are looked at: ten words against ten."""


def weat(
    vectors: Mapping[str, Any],
    x: Sequence[str],
    y: Sequence[str],
    a: Sequence[str],
    b: Sequence[str],
    *,
    n_permutations: int = 9_999,
    n_resamples: int = 1_000,
    seed: int = 0,
    name: str = "weat",
) -> Association:
    """Association of target words `x` rather than `y` with attributes `a` rather than `b`.

    Args:
        vectors: by word an array `[d]`, or `[sentence d]` of several sentences about it. Words
            that are missing are left out and named in the result.
        x: target words that a positive effect associates with `a`.
        y: target words that it associates with `b`.
        a: attribute words.
        b: attribute words.
        n_permutations: random partitions, where there are more than 200,000 in all.
        n_resamples: of the words, for the interval.
        seed: of partitions and resamples.
        name: what the test is called.

    Raises:
        MethodError: fewer than two words of a set have vectors, a word in both of two opposed
            sets, vectors of different widths, of length zero or not finite.
    """
    sets = read_sets(vectors, x, y, a, b)
    cosines = sets.cosines()
    items = sets.by_attribute(cosines)
    scores, n_x = sets.target_means(items), len(sets.x)
    p, greater, exact, tried = partition_test(scores, n_x, n=n_permutations, seed=seed)
    rng = np.random.default_rng((seed, 1))
    draws = np.array([_effect(items, sets, rng) for _ in range(n_resamples)])
    effect = _effect(items, sets)
    without = [_effect(items, sets, leave=i) for i in range(len(scores))]
    centred = sets.centred()
    return Association(
        name=name,
        effect=interval(effect, draws, sets),
        p=p,
        p_greater=greater,
        exact=exact,
        n_partitions=tried,
        centred=_effect(centred.by_attribute(centred.cosines()), centred),
        scores=dict(zip((*sets.x, *sets.y), scores.tolist(), strict=True)),
        without=dict(zip((*sets.x, *sets.y), without, strict=True)),
        sizes=sets.sizes,
        missing=sets.missing,
        items_a_word=sets.items_a_word,
        provenance={"seed": seed, "n_resamples": n_resamples},
    )


def interval(effect: float, draws: Floats, sets: FourSets) -> Estimate:
    """Effect with the interval of its resamples; `n` is the number of target words."""
    kept = draws[np.isfinite(draws)]
    n = len(sets.x) + len(sets.y)
    if not len(kept):
        return Estimate(effect, float("nan"), float("nan"), n, "sd")
    low, high = percentiles(kept, min(sets.sizes))
    return Estimate(effect, low, high, n, "sd")


def effect_size(s: Floats, n_x: int) -> float:
    """d of association scores whose first `n_x` belong to X; NaN where all are the same.

    >>> round(effect_size(np.array([1.0, 3.0, -1.0, -3.0]), 2), 4)
    1.5492
    """
    spread = s.std(ddof=1)
    gap = s[:n_x].mean() - s[n_x:].mean()
    return float(gap / spread) if spread > 1e-12 else float("nan")


def partition_test(
    scores: Floats, n_x: int, *, n: int = 9_999, seed: int = 0
) -> tuple[float, float, bool, int]:
    """p of the difference of means over partitions of the words, `n_x` of them in X.

    Two-sided: the share of partitions whose difference is at least as large in size; it need
    not be twice the one-sided p, which is given too. All partitions where there are at most
    200,000, the observed one among them; else (1 + as extreme) / (1 + drawn).

    Returns:
        p, p of a difference at least as large, whether it is exact, partitions looked at.
    """
    total = comb(len(scores), n_x)
    exact = total <= EXACT
    if exact:
        chosen: NDArray[Any] = np.fromiter(
            (i for c in combinations(range(len(scores)), n_x) for i in c), np.int16, total * n_x
        ).reshape(total, n_x)
    else:
        rng = np.random.default_rng(seed)
        chosen = np.stack([rng.permutation(len(scores))[:n_x] for _ in range(n)])
    sums = scores[chosen].sum(1)
    n_y = len(scores) - n_x
    gaps = sums / n_x - (scores.sum() - sums) / n_y
    observed = scores[:n_x].mean() - scores[n_x:].mean()
    slack = 1e-10 * max(float(np.abs(scores).max()), 1e-30)
    both = int((np.abs(gaps) >= abs(observed) - slack).sum())
    above = int((gaps >= observed - slack).sum())
    if exact:
        return both / total, above / total, True, total
    return (1 + both) / (1 + n), (1 + above) / (1 + n), False, n


def _effect(
    items: Floats,
    sets: FourSets,
    rng: np.random.Generator | None = None,
    *,
    leave: int | None = None,
) -> float:
    """d on all words, on a resample of the words of all four sets, or without one target word.

    `items [target item, attribute word]` are cosines. Means are of words, the standard
    deviation is that of all items: with one vector a word the published d.
    """
    n_x, n_y, n_a, n_b = sets.sizes

    def draw(n: int, start: int) -> NDArray[np.int64]:
        return start + (np.arange(n) if rng is None else rng.integers(0, n, n))

    in_a, in_b = draw(n_a, 0), draw(n_b, n_a)
    s = items[:, in_a].mean(1) - items[:, in_b].mean(1)
    sides = [
        [i for i in side if i != leave] for side in (draw(n_x, 0).tolist(), draw(n_y, n_x).tolist())
    ]
    means = [np.mean([s[sets.rows[i]].mean() for i in side]) for side in sides]
    every = np.concatenate([s[sets.rows[i]] for side in sides for i in side])
    spread = every.std(ddof=1)
    return float((means[0] - means[1]) / spread) if spread > 1e-12 else float("nan")

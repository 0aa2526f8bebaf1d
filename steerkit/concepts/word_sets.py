"""The four word sets of an association test with their vectors, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerkit.errors import MethodError
from steerkit.statistics import Floats


@dataclass(frozen=True, eq=False)
class FourSets:
    """Two sets of target words, two of attribute words, and one or more vectors of each.

    `vectors` holds `[item d]` of every word, in the order x, y, a, b.
    """

    x: tuple[str, ...]
    y: tuple[str, ...]
    a: tuple[str, ...]
    b: tuple[str, ...]
    vectors: tuple[Floats, ...]
    missing: tuple[str, ...] = ()

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Words of x, y, a and b."""
        return len(self.x), len(self.y), len(self.a), len(self.b)

    @property
    def targets(self) -> tuple[Floats, ...]:
        """Vectors of the words of x, then y."""
        return self.vectors[: len(self.x) + len(self.y)]

    @property
    def attributes(self) -> tuple[Floats, ...]:
        """Vectors of the words of a, then b."""
        return self.vectors[len(self.x) + len(self.y) :]

    @property
    def items_a_word(self) -> tuple[int, int]:
        """Fewest and most vectors of a word."""
        counts = [len(v) for v in self.vectors]
        return min(counts), max(counts)

    @cached_property
    def rows(self) -> tuple[NDArray[np.int64], ...]:
        """Items of each target word among all target items."""
        return rows_of(self.targets)

    def cosines(self) -> Floats:
        """Cosine of every target item with every attribute item."""
        return unit(np.concatenate(self.targets)) @ unit(np.concatenate(self.attributes)).T

    def by_attribute(self, cosines: Floats) -> Floats:
        """Cosines averaged over the items of each attribute word: `[target item, word]`."""
        return np.stack([cosines[:, r].mean(1) for r in rows_of(self.attributes)], 1)

    def target_means(self, items: Floats) -> Floats:
        """s of each target word, the mean over its items."""
        n_a = len(self.a)
        s = items[:, :n_a].mean(1) - items[:, n_a:].mean(1)
        return np.array([s[r].mean() for r in self.rows])

    def centred(self) -> "FourSets":
        """The same with the mean over words taken out, for spaces where all cosines are high."""
        middle = np.mean([v.mean(0) for v in self.vectors], 0)
        return replace(self, vectors=tuple(v - middle for v in self.vectors))


def rows_of(parts: Sequence[Floats]) -> tuple[NDArray[np.int64], ...]:
    """Where each part's rows stand once all are put together."""
    ends = np.cumsum([len(p) for p in parts])
    return tuple(np.arange(end - len(p), end) for p, end in zip(parts, ends, strict=True))


def unit(rows: Floats) -> Floats:
    """Rows divided by their norms (a row that centring made zero stays zero)."""
    size: Floats = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(size, 1e-30)


def read_sets(
    vectors: Mapping[str, Any],
    x: Sequence[str],
    y: Sequence[str],
    a: Sequence[str],
    b: Sequence[str],
) -> FourSets:
    """The words that have vectors; those that have none are named.

    Raises:
        MethodError: see `weat`.
    """
    sets = {"x": tuple(x), "y": tuple(y), "a": tuple(a), "b": tuple(b)}
    for one, other in (("x", "y"), ("a", "b")):
        shared = sorted({*sets[one]} & {*sets[other]})
        if shared:
            raise MethodError(
                f"the sets {one} and {other} are opposed but share {', '.join(shared[:5])}; "
                "leave those words out of both"
            )
    kept = {side: tuple(dict.fromkeys(w for w in s if w in vectors)) for side, s in sets.items()}
    missing = tuple(dict.fromkeys(w for s in sets.values() for w in s if w not in vectors))
    for side, words in kept.items():
        if len(words) < 2:
            raise MethodError(
                f"set {side} has vectors for {len(words)} of {len(sets[side])} words "
                f"({', '.join(sets[side][:5])}, ...); a test needs at least 2 of each set"
            )
    found = tuple(_items(w, vectors[w]) for side in ("x", "y", "a", "b") for w in kept[side])
    widths = {v.shape[1] for v in found}
    if len(widths) > 1:
        raise MethodError(f"vectors have different widths, {sorted(widths)}; give one space's")
    return FourSets(kept["x"], kept["y"], kept["a"], kept["b"], found, missing)


def _items(word: str, value: Any) -> Floats:
    items = np.asarray(value, dtype=np.float64)
    items = items[None] if items.ndim == 1 else items
    if items.ndim != 2 or not items.size:
        raise MethodError(f"'{word}' needs vectors [d] or [item d]; got shape {items.shape}")
    if not np.isfinite(items).all():
        raise MethodError(f"a vector of '{word}' is not finite; capture it in a wider dtype")
    if (np.linalg.norm(items, axis=1) == 0).any():
        raise MethodError(f"a vector of '{word}' is zero, which has no cosine; leave the word out")
    return items

"""`consistency_recovery`: are concepts whose states shift alike recovered better?

Published as a correlation over 60 concepts of three model pairs, as if they were 60 units.
Concepts of one pair share a fine-tuning run, so pairs are resampled here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerkit.comparisons.representation_shift_result import PAPER, RepresentationShift
from steerkit.errors import MethodError
from steerkit.statistics import Estimate, Floats, Null, null, percentiles

Ints = NDArray[np.int64]
LEAST_PAIRS = 5
"""Of fewer model pairs, resampling says nothing: their interval is all of [-1, 1]."""


@dataclass(frozen=True)
class ConsistencyRecovery:
    """Pearson's correlation of consistency with recovery over concepts.

    Attributes:
        value: over all concepts; the interval resamples model pairs.
        global_shift: the same of recovery by the shift of all states: what is no concept's doing.
        within: of each pair by itself, NaN for fewer than three concepts.
        exchanged: |value| beside recoveries exchanged within each pair and site.
        n_concepts: concepts in all.
    """

    value: Estimate
    global_shift: Estimate
    within: dict[str, float]
    exchanged: Null
    n_concepts: int

    @property
    def conclusive(self) -> bool:
        """Whether there are enough pairs to say anything about other pairs."""
        return self.value.n >= LEAST_PAIRS

    def summary(self) -> str:
        """What was found, in one line."""
        told = (
            ""
            if self.conclusive
            else f"; inconclusive: the unit is the pair of models, and {LEAST_PAIRS} are needed"
        )
        return (
            f"consistency and recovery: Pearson {self.value} over {self.n_concepts} concepts of "
            f"{self.value.n} model pair{'s' if self.value.n > 1 else ''} (recovery by the shift of "
            f"all states: {self.global_shift.value:.3g}){told}"
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "paper": PAPER,
            "value": self.value.to_json(),
            "global_shift": self.global_shift.to_json(),
            "within": self.within,
            "exchanged": self.exchanged.to_json(),
            "n_concepts": self.n_concepts,
        }


def consistency_recovery(
    shifts: Sequence[RepresentationShift],
    pairs: Sequence[str] | None = None,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
) -> ConsistencyRecovery:
    """Correlate, over concepts, how alike states shift with how well the shift recovers them.

    Args:
        shifts: of several model pairs, and of several sites of one.
        pairs: which pair of models each belongs to; by default what its provenance says.
        n_resamples: of the bootstrap, and exchanges of the null.
        seed: of both.

    Raises:
        MethodError: no shifts, other counts of shifts and pairs, or fewer than three concepts.

    Source: arXiv:2501.03012, whose interval is over concepts; this one is over model pairs.
    """
    if not shifts or (pairs is not None and len(pairs) != len(shifts)):
        raise MethodError(
            f"consistency_recovery takes shifts and one pair name for each; got {len(shifts)} and "
            f"{len(pairs or ())}"
        )
    names = [_pair(s) for s in shifts] if pairs is None else list(pairs)
    rows = [
        (names[i], i, c.consistency, c.recovery, c.recovery_global)
        for i, shift in enumerate(shifts)
        for c in shift.concepts
        if np.isfinite([c.consistency, c.recovery, c.recovery_global]).all()
    ]
    if len(rows) < 3:
        raise MethodError(f"a correlation over concepts needs at least 3; got {len(rows)}")
    who = np.array([row[0] for row in rows])
    block = np.array([row[1] for row in rows])
    x, y, z = (np.array([row[k] for row in rows], dtype=np.float64) for k in (2, 3, 4))
    kinds, code = np.unique(who, return_inverse=True)
    rng = np.random.default_rng(seed)
    value = _pearson(x, y)
    order = np.argsort(block, kind="stable")
    mixed = np.empty((n_resamples, len(y)))
    mixed[:, order] = y[np.argsort(block + rng.random(mixed.shape), axis=1, kind="stable")]
    chance = np.abs([_pearson(x, row) for row in mixed])
    return ConsistencyRecovery(
        _estimate(x, y, code, n_resamples, seed),
        _estimate(x, z, code, n_resamples, seed),
        {str(k): _pearson(x[code == i], y[code == i]) for i, k in enumerate(kinds)},
        null("recoveries exchanged within pair and site, absolute", abs(value), chance),
        len(rows),
    )


def _estimate(x: Floats, y: Floats, code: Ints, n_resamples: int, seed: int) -> Estimate:
    """Pearson's r; its interval resamples pairs, by the moments that each contributes."""
    n = int(code.max()) + 1
    low, high = -1.0, 1.0
    if n >= LEAST_PAIRS:
        terms = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y])
        parts = np.stack([np.bincount(code, weights=t) for t in terms])
        draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), n_resamples)
        count, *rest = parts @ draws.T
        mx, my, xx, yy, xy = (r / count for r in rest)
        with np.errstate(invalid="ignore", divide="ignore"):
            r = (xy - mx * my) / np.sqrt((xx - mx**2) * (yy - my**2))
        low, high = percentiles(r[np.isfinite(r)], n)
    return Estimate(_pearson(x, y), max(low, -1.0), min(high, 1.0), n, "Pearson")


def _pearson(x: Floats, y: Floats) -> float:
    if len(x) < 3 or x.std() == 0 or y.std() == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def _pair(shift: RepresentationShift) -> str:
    a, b = (shift.provenance.get(k, {}).get("fingerprint", "") for k in ("a", "b"))
    return f"{a[:12]} to {b[:12]}"

"""Paired comparison of successes: McNemar's exact test."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class McNemar:
    """Prompts whose success changed between two arms under identical decoding.

    Attributes:
        gained: failed before, succeeded after.
        lost: succeeded before, failed after.
        p: two-sided exact p-value: under no effect a change is a gain with probability 1/2.
            Prompts count as independent; where groups are few, trust the exchange of groups.
    """

    gained: int
    lost: int
    p: float

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)


def mcnemar(before: Sequence[float] | np.ndarray, after: Sequence[float] | np.ndarray) -> McNemar:
    """McNemar's exact test on successes (a value above 1/2 is one). Source: McNemar 1947.

    >>> mcnemar([0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1])
    McNemar(gained=5, lost=0, p=0.0625)
    """
    from scipy.stats import binomtest

    a, b = np.asarray(before) > 0.5, np.asarray(after) > 0.5
    gained, lost = int((~a & b).sum()), int((a & ~b).sum())
    n = gained + lost
    return McNemar(gained, lost, float(binomtest(gained, n, 0.5).pvalue) if n else 1.0)

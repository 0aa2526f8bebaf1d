"""Counted rates with conservative intervals."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from steerkit.statistics import cluster_mean, wilson


@dataclass(frozen=True)
class Rate:
    """`hits` of `total` items and the ends of its 95% interval; fractions.

    The interval is the union of the Wilson interval over items and, where items have groups, of
    the bootstrap that resamples whole groups (templates).
    """

    hits: int
    total: int
    low: float
    high: float
    worst_group: float | None = None
    """The rate of the group that does worst, None without groups."""

    @property
    def value(self) -> float:
        """The point estimate."""
        return self.hits / self.total


def count(hits: Sequence[bool], groups: Sequence[str] = ()) -> Rate:
    """Count hits and bound their rate.

    >>> count([True] * 500).low > 0.99
    True
    """
    n, k = len(hits), sum(hits)
    bound = wilson(k, n)
    if not groups:
        return Rate(k, n, bound.low, bound.high)
    grouped: defaultdict[str, list[bool]] = defaultdict(list)
    for group, hit in zip(groups, hits, strict=True):
        grouped[group].append(hit)
    worst = min(sum(g) / len(g) for g in grouped.values())
    clustered = cluster_mean([float(h) for h in hits], groups)
    return Rate(k, n, min(bound.low, clustered.low), max(bound.high, clustered.high), worst)

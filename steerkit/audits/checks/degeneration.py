"""Degeneration: empty answers and answers that loop."""

from collections.abc import Hashable, Sequence
from math import nan

from steerkit.audits.checks import register
from steerkit.audits.evidence import Evidence

REPEATS = 4
"""A loop is one phrase at least this often in direct succession ..."""
SHARE = 0.5
"""... that makes up at least this share of the answer."""
LONGEST = 12
"""Longest phrase looked for, in words (or characters, in text without spaces)."""


def is_degenerate(text: str) -> bool:
    """Whether the answer is empty or mostly one phrase in direct repetition.

    >>> is_degenerate("the the the the the")
    True
    >>> is_degenerate("very, very, very good, and the cat sat down by the fire")
    False
    """
    words = text.split()
    if not words:
        return True
    return loops(words) or any(len(w) > 12 and loops(tuple(w)) for w in words)


def loops(sequence: Sequence[Hashable]) -> bool:
    """Whether one phrase repeated at least `REPEATS` times makes up half of the sequence."""
    n = len(sequence)
    for period in range(1, min(LONGEST, n // REPEATS) + 1):
        run = longest = 0
        for i in range(period, n):
            run = run + 1 if sequence[i] == sequence[i - period] else 0
            longest = max(longest, run)
        covered = longest + period
        if covered >= REPEATS * period and covered >= SHARE * n:
            return True
    return False


@register(
    "degeneration",
    unit="fraction",
    law=f"The answer is empty, or one phrase repeated {REPEATS} times or more makes up half of it.",
    source="Holtzman et al. 2020 (arXiv:1904.09751), repetition as exact loops",
)
def degeneration(evidence: Evidence) -> Sequence[float]:
    """1 where the answer is empty or loops, NaN where none was asked for."""
    return [float(is_degenerate(i.output)) if i.answered else nan for i in evidence.items]

"""Correct: the answer holds the reference answer."""

from collections.abc import Sequence
from math import nan

from steerkit.audits.checks import register
from steerkit.audits.evidence import Evidence


@register(
    "correct",
    unit="fraction",
    law="The answer agrees with the reference (by default: holds it as whole words, folded).",
    source="accuracy against references given with the prompts",
    needs="reference",
)
def correct(evidence: Evidence) -> Sequence[float]:
    """The scorer's value where a reference is known, else NaN."""
    return [
        float(evidence.scorer(i.output, i.reference)) if i.answered and i.reference else nan
        for i in evidence.items
    ]

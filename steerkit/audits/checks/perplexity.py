"""Perplexity of what the plain model says, and of given texts, under the arm."""

from collections.abc import Sequence
from math import exp, nan

from steerkit.audits.checks import register
from steerkit.audits.evidence import Evidence


@register(
    "perplexity",
    unit="per token",
    law="exp of the arm's mean negative log-likelihood per token, on the plain model's answers "
    "and on given texts.",
    source="Jelinek et al. 1977, perplexity",
    needs="nll",
)
def perplexity(evidence: Evidence) -> Sequence[float]:
    """Perplexity of each text; NaN where it was not measured."""
    return [exp(min(sum(v) / len(v), 700.0)) if v else nan for v in evidence.measured("nll")]

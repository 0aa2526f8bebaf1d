"""How strange the arm's own answers are to the plain model."""

from collections.abc import Sequence
from math import exp, nan

from steerkit.audits.checks import register
from steerkit.audits.evidence import Evidence


@register(
    "fluency",
    unit="per token",
    law="Perplexity of the arm's own answer under the plain model, given the plain prompt: "
    "high where an answer is broken or simply new.",
    source="Turner et al. 2023 (arXiv:2308.10248), perplexity of steered text",
    needs="own_nll",
)
def fluency(evidence: Evidence) -> Sequence[float]:
    """Perplexity of each answer; NaN where it is empty or was not measured."""
    return [exp(min(sum(v) / len(v), 700.0)) if v else nan for v in evidence.measured("own_nll")]

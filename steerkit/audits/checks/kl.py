"""KL divergence from the plain model on negative prompts, over the whole answer."""

from collections.abc import Sequence
from math import nan

from steerkit.audits.checks import register
from steerkit.audits.evidence import Evidence


@register(
    "kl",
    unit="nats/token",
    law="KL(plain || arm) per token, teacher-forced on the plain model's own answer, averaged "
    "over the whole answer.",
    source="Arditi et al. 2024 (arXiv:2406.11717), over the answer instead of one token",
    needs="kl",
    per_token="kl",
    tested=False,
)
def kl(evidence: Evidence) -> Sequence[float]:
    """Mean over the tokens of each answer; NaN where it was not measured."""
    return [sum(v) / len(v) if v else nan for v in evidence.measured("kl")]

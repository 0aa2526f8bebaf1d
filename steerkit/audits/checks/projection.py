"""Where prompts stand along the direction."""

from collections.abc import Sequence
from math import nan

from steerkit.audits.checks import register
from steerkit.audits.evidence import Evidence


@register(
    "projection",
    unit="class gaps",
    law="Projection of the prompt on the direction, at its site and pooling, after steering: "
    "0 is the mean of the negative prompts it was fitted on, 1 that of the positive ones.",
    source="Kim et al. 2018 (arXiv:1711.11279), concept activation vectors",
    needs="projection",
)
def projection(evidence: Evidence) -> Sequence[float]:
    """The normalised projection; NaN where it was not measured."""
    return [v[0] if v else nan for v in evidence.measured("projection")]

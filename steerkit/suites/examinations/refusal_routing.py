"""Is there one direction by which it refuses?"""

from steerkit.suites.finding import Finding
from steerkit.suites.registry import register
from steerkit.suites.routing import routed
from steerkit.suites.subject import Subject


@register(
    "refusal_routing",
    question="Is there one direction whose ablation makes it answer harmful requests?",
    needs=("refusal",),
    reads=(),
    source="directional ablation (arXiv:2406.11717), as a measurement of how refusal is held",
)
def refusal_routing(subject: Subject) -> Finding:
    """What ablating the mean difference takes away, beside random directions."""
    return routed(subject, "refusal", "harmful requests are left unanswered")

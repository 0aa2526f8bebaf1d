"""Does it find stereotypes likelier than their opposites?"""

from steerkit.suites.finding import Finding
from steerkit.suites.preference import preferred
from steerkit.suites.registry import register
from steerkit.suites.subject import Subject


@register(
    "stereotypes",
    question="Does it find stereotypes likelier than their opposites?",
    needs=("stereotypes",),
    source="likelier of two sentences (arXiv:2004.09456, arXiv:2010.00133), by sum and per token",
)
def stereotypes(subject: Subject) -> Finding:
    """Share of pairs whose stereotype is likelier; what it would say of anybody is not asked."""
    return preferred(subject, "stereotypes", first="the stereotype", second="its opposite")

"""Does it find right answers likelier than wrong ones?"""

from steerkit.suites.finding import Finding
from steerkit.suites.preference import preferred
from steerkit.suites.registry import register
from steerkit.suites.subject import Subject


@register(
    "truthfulness",
    question="Does it find right answers likelier than wrong ones?",
    needs=("truths",),
    source="multiple choice by likelihood (TruthfulQA, arXiv:2109.07958), by sum and per token",
)
def truthfulness(subject: Subject) -> Finding:
    """Share of questions whose right answer is the likelier one; nothing is generated."""
    return preferred(subject, "truths", first="the right answer", second="a wrong one")

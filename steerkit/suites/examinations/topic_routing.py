"""Is there one direction by which a topic is kept from being answered?"""

from steerkit.suites.finding import Finding
from steerkit.suites.registry import register
from steerkit.suites.routing import routed
from steerkit.suites.subject import Subject


@register(
    "topic_routing",
    question="Is there one direction whose ablation makes it answer the topic?",
    needs=("topic",),
    reads=(),
    source="surgical ablation (arXiv:2603.18280), layer and operator chosen on other prompts",
)
def topic_routing(subject: Subject) -> Finding:
    """What ablating the mean difference takes away, beside random directions."""
    return routed(subject, "topic", "questions on the topic are left unanswered")

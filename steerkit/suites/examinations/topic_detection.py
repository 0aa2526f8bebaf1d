"""Does it tell a topic from its control, whatever it then does with it?"""

from steerkit.suites.examinations.detection import probed
from steerkit.suites.finding import Finding
from steerkit.suites.registry import register
from steerkit.suites.subject import Subject


@register(
    "topic_detection",
    question="Does it tell the topic from its control, beyond the words?",
    needs=("topic",),
    reads=(),
    source="detection beside routing (arXiv:2603.18280)",
)
def topic_detection(subject: Subject) -> Finding:
    """A probe of the topic: a model may hold the difference and answer all the same."""
    return probed(subject, subject.contrast("topic"))

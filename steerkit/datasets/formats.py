"""The same questions as a test puts them and as a person does, each as an exam and as a chat."""

from pathlib import Path

from steerkit.prompts import Contrast

_HERE = Path(__file__).parent


def deployment() -> Contrast:
    """40 questions in four cells: like a test or like deployment, by exam or by chat format.

    The positive side is deploy-like. A prompt's group is its question, its category the format
    (`exam` or `chat`); content and format are crossed, so that neither tells of the other.
    Words and length are not balanced between the contents: look at the text-only baseline.
    """
    return Contrast.read(_HERE / "grids" / "deployment.jsonl", name="deployment")

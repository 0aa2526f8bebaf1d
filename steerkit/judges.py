"""Judges: any callable that scores answers, called so that one failure loses one score."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from steerkit.errors import MethodError
from steerkit.prompts import Prompt


class Judge(Protocol):
    """Scores answers: prompts and as many answers in, one number each out."""

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str], /) -> Sequence[float]:
        """One score an answer."""
        ...


@dataclass(frozen=True, eq=False)
class Judgements:
    """What a judge said.

    Attributes:
        values: `[answer]`, 0 to 1; NaN where the judge failed.
        failures: number of an answer -> why there is no score of it.
    """

    values: NDArray[np.float64]
    failures: dict[int, str]

    def __repr__(self) -> str:
        return f"Judgements({len(self.values)} answers, {len(self.failures)} failures)"


def judge_answers(
    judge: Judge, prompts: Sequence[Prompt], answers: Sequence[str], *, name: str = ""
) -> Judgements:
    """Scores from 0 to 1 of all answers; where the judge raises, every other score is kept.

    The judge gets everything at once. If it raises, it is asked one answer at a time, and those
    on which it raises again have no score. A score of NaN counts as a failure too.

    Raises:
        MethodError: another number of scores than answers, or one outside 0 to 1: such a judge
            is broken, not unlucky.
    """
    label = name or judge_name(judge)
    try:
        values = _scores(judge, prompts, answers, label)
        return Judgements(values, {int(i): "gave NaN" for i in np.flatnonzero(np.isnan(values))})
    except MethodError:
        raise
    except Exception as error:
        if len(answers) == 1:
            return Judgements(np.array([np.nan]), {0: f"{type(error).__name__}: {error}"})
    found = [
        judge_answers(judge, [p], [a], name=label) for p, a in zip(prompts, answers, strict=True)
    ]
    return Judgements(
        np.concatenate([f.values for f in found]),
        {i: f.failures[0] for i, f in enumerate(found) if f.failures},
    )


class Counted:
    """A judge of single answers that loses one score where it raises, and counts it.

    Called as the judge is, and gives a float: NaN where the judge raised. What it said of a text
    is kept, so that a text has one score however often it is asked for. It goes by the judge's
    own name and module.

    Attributes:
        failures: what could not be judged since `forget` -> why. One entry a distinct text.

    >>> judge = Counted(lambda text: {"yes": True, "no": False}[text])
    >>> judge("yes"), judge("perhaps"), judge.failures
    (1.0, nan, {('perhaps',): "KeyError: 'perhaps'"})
    """

    def __init__(self, judge: Callable[..., Any]) -> None:
        known = judge if hasattr(judge, "__qualname__") else type(judge)
        self.__name__ = judge_name(judge)
        self.__qualname__, self.__module__ = known.__qualname__, known.__module__
        self.failures: dict[Any, str] = {}
        self._judge = judge
        self._said: dict[Any, tuple[float, str]] = {}

    @classmethod
    def of(cls, judge: Callable[..., Any]) -> "Counted":
        """The judge, counted; one that is counted already as it is."""
        return judge if isinstance(judge, cls) else cls(judge)

    def __call__(self, *given: Any) -> float:
        """The judge's score, or NaN."""
        # What is no text (an item with all its measurements) is judged each time anew.
        key: Any = given if all(isinstance(g, str) for g in given) else (id(given[0]),)
        if key not in self._said or key != given:
            self._said[key] = self._scored(given)
        value, why = self._said[key]
        if why:
            self.failures[key] = why
        return value

    def forget(self) -> None:
        """Count failures from here on; scores are kept."""
        self.failures = {}

    @property
    def told(self) -> str:
        """How many could not be judged, and why the first could not; empty where all could."""
        if not self.failures:
            return ""
        why = next(iter(self.failures.values()))
        n = len(self.failures)
        answers = f"{n} different answers" if n > 1 else "1 answer"
        return f"{answers} could not be judged by '{self.__name__}', first: {why}"

    def _scored(self, given: tuple[Any, ...]) -> tuple[float, str]:
        try:
            return float(self._judge(*given)), ""
        except Exception as error:
            return float("nan"), f"{type(error).__name__}: {error}"


def judge_name(judge: object) -> str:
    """How a judge is called in tables."""
    return str(getattr(judge, "__name__", type(judge).__name__))


def _scores(
    judge: Judge, prompts: Sequence[Prompt], answers: Sequence[str], name: str
) -> NDArray[np.float64]:
    values = np.asarray(judge(prompts, answers), dtype=np.float64)
    if values.shape != (len(answers),):
        raise MethodError(
            f"the judge '{name}' gave {values.size} scores for {len(answers)} answers; it returns "
            "one number an answer"
        )
    wrong = values[~np.isnan(values) & ~((values >= 0) & (values <= 1))]
    if wrong.size:
        raise MethodError(
            f"the judge '{name}' gives numbers from 0 to 1; it gave {wrong.min():g} to "
            f"{wrong.max():g}"
        )
    return values

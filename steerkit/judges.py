"""Judges: any callable that scores answers, called so that one failure loses one score."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

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

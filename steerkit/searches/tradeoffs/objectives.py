"""Objectives of the trade-off: how well right answers are kept, and a bounded behaviour."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from steerkit.errors import MethodError
from steerkit.prompts import Prompt
from steerkit.protocols import Model
from steerkit.scoring import TOKEN_BUDGET, answer_log_probs_by_slot
from steerkit.searches.objectives import LogOdds, Scores, as_is

Measure = Literal["probability", "log_prob", "correct"]
UNITS: Mapping[str, str] = {
    "probability": "probability",
    "log_prob": "nats/token",
    "correct": "fraction",
}


@dataclass(frozen=True)
class OwnAnswer:
    """How well a prompt's own right answer is still predicted, teacher-forced.

    Attributes:
        measure: `log_prob`: mean log-probability a token, nats; `probability`: its
            exponential, the geometric mean over tokens; `correct`: whether the model prefers
            the answer to the prompt's `others`, summed log-probabilities, 1 or 0.
        others: prompt text -> wrong answers, for `correct`.
        token_budget: padded tokens a batch.
    """

    measure: Measure = "probability"
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    token_budget: int = TOKEN_BUDGET
    name: str = "own_answer"

    @property
    def unit(self) -> str:
        """Of the measure."""
        return UNITS[self.measure]

    def score(
        self, model: Model, prompts: Sequence[Prompt], slots: Sequence[int] | None = None
    ) -> Scores:
        """One scored answer a prompt, or as many as there are to choose from.

        Raises:
            MethodError: an unknown measure, a prompt without an answer, or without others.
        """
        if self.measure not in UNITS:
            raise MethodError(f"no measure named '{self.measure}'; there are {', '.join(UNITS)}")
        bare = [p for p in prompts if not p.answer]
        if bare:
            raise MethodError(
                f"{len(bare)} of {len(prompts)} prompts have no right answer to score, such as "
                f"{bare[0].text[:40]!r}; give prompts an `answer`"
            )
        asked = [
            (i, p.with_answer(a))
            for i, p in enumerate(prompts)
            for a in (p.answer, *(self._others(p) if self.measure == "correct" else ()))
        ]
        items = model.tokenize([p for _, p in asked])
        found = answer_log_probs_by_slot(
            model, items, as_is(model, slots), token_budget=self.token_budget
        )
        if self.measure == "correct":
            sums = np.array([[float(x.sum()) for x in row] for row in found])
            owner = np.array([i for i, _ in asked])
            best = [
                [float(row[owner == i].argmax() == 0) for i in range(len(prompts))] for row in sums
            ]
            return Scores(np.array(best))
        means = np.array([[float(x.mean()) for x in row] for row in found])
        return Scores(np.exp(means) if self.measure == "probability" else means)

    def _others(self, prompt: Prompt) -> tuple[str, ...]:
        others = self.others.get(prompt.text, ())
        if not others:
            raise MethodError(
                f"no other answers to choose from for the prompt {prompt.text[:40]!r}; give "
                "`others`, or measure the 'probability'"
            )
        return others


@dataclass(frozen=True)
class Balance:
    """P(positive answer) - P(negative answer), renormalised over the two; from -1 to 1.

    That is tanh of half their log-odds. The theory's curve is one of this level.
    """

    odds: LogOdds
    name: str = "balance"
    unit: str = "probability"

    def score(
        self, model: Model, prompts: Sequence[Prompt], slots: Sequence[int] | None = None
    ) -> Scores:
        """From the log-odds."""
        return Scores(np.tanh(self.odds.score(model, prompts, slots).values / 2))

"""Objectives from judges, from the audit's checks, and from labels.

What a search moves need not be refusal: any callable that scores answers, any check that an
audit makes of answers, and how often the right label is the likeliest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from steerkit.audits.checks import ItemCheck
from steerkit.audits.evidence import Evidence, Item
from steerkit.errors import MethodError
from steerkit.judges import Judge as Judge
from steerkit.prompts import Prompt
from steerkit.protocols import Model
from steerkit.scoring import TOKEN_BUDGET, answer_log_probs_by_slot
from steerkit.searches.objectives import Scores, answers, as_is


@dataclass(frozen=True)
class Judged:
    """Greedy answers scored by any callable: a classifier, another model, a rule.

    The judge is called once a slot with all prompts. Validate it on labelled answers first:
    its errors become the search's.

    Attributes:
        judge: `judge(prompts, answers)`, one number an answer; more means more of what the
            directions point to.
        name: how it is called in tables.
        unit: of one score.
        max_new_tokens: how much is generated.
        token_budget: padded tokens a batch.
    """

    judge: Judge
    name: str = "judged"
    unit: str = "fraction"
    max_new_tokens: int = 32
    token_budget: int = TOKEN_BUDGET

    def score(
        self, model: Model, prompts: Sequence[Prompt], slots: Sequence[int] | None = None
    ) -> Scores:
        """Generate and judge."""
        outputs = answers(model, prompts, slots, self.max_new_tokens, self.token_budget)
        values = []
        for row in outputs:
            found = np.asarray(self.judge(prompts, row), dtype=np.float64)
            if found.shape != (len(prompts),):
                raise MethodError(
                    f"the judge '{self.name}' gave {found.size} scores for {len(prompts)} "
                    "answers; it returns one number an answer"
                )
            values.append(found)
        return Scores(np.array(values), outputs)


def of_check(
    check: ItemCheck, *, max_new_tokens: int = 32, token_budget: int = TOKEN_BUDGET
) -> Judged:
    """A check of the audit as an objective, on the answers to the searched prompts.

    Raises:
        MethodError: a check of something other than answers; those are guards.
    """
    if check.needs not in ("", "reference"):
        raise MethodError(
            f"the check '{check.name}' needs the measurement '{check.needs}', which a search "
            "does not take of answers; use it as a guard (guard='kl', 'perplexity'), or search "
            "by a check of answers"
        )

    def judge(prompts: Sequence[Prompt], said: Sequence[str], /) -> Sequence[float]:
        items = tuple(
            Item("steered", i, "positive", p.group, p.text, reference=p.answer, output=text)
            for i, (p, text) in enumerate(zip(prompts, said, strict=True))
        )
        return list(check(Evidence("steered", items, items)))

    return Judged(judge, check.name, check.unit, max_new_tokens, token_budget)


@dataclass(frozen=True)
class LabelAccuracy:
    """Whether a prompt's own `answer` is the likeliest of the labels; 1 or 0.

    By log-probability of the whole label after the prompt; nothing is generated.

    Attributes:
        labels: the possible answers, as they follow a prompt.
        token_budget: padded tokens a batch.
    """

    labels: tuple[str, ...]
    token_budget: int = TOKEN_BUDGET
    name: str = "label_accuracy"
    unit: str = "fraction"

    def score(
        self, model: Model, prompts: Sequence[Prompt], slots: Sequence[int] | None = None
    ) -> Scores:
        """One scored label a pass, all of them a prompt."""
        wrong = [p for p in prompts if p.answer not in self.labels]
        if wrong or len(self.labels) < 2:
            raise MethodError(
                f"label accuracy needs each prompt's answer among at least two labels "
                f"({', '.join(map(repr, self.labels))}); {len(wrong)} of {len(prompts)} prompts "
                f"have another, such as {(wrong or prompts)[0].answer!r}"
            )
        items = model.tokenize([p.with_answer(label) for p in prompts for label in self.labels])
        found = answer_log_probs_by_slot(
            model, items, as_is(model, slots), token_budget=self.token_budget
        )
        sums = np.array([[float(x.sum()) for x in row] for row in found])
        likeliest = sums.reshape(len(sums), len(prompts), -1).argmax(2)
        right = np.array([self.labels.index(p.answer) for p in prompts])
        return Scores((likeliest == right).astype(np.float64))

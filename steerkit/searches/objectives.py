"""What a search moves: one value a prompt for every program slot of a steered view.

Values of all slots are measured on the same prompts, many slots in one batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from steerkit.batch import Batch
from steerkit.direction import Direction
from steerkit.errors import MethodError
from steerkit.prompts import Prompt
from steerkit.protocols import Model
from steerkit.refusals import fold, is_refusal
from steerkit.scoring import TOKEN_BUDGET, answer_log_probs_by_slot, slot_batches
from steerkit.statistics import Floats

ROWS_AT_ONCE = 4096
"""Generated rows held in memory at a time."""


@dataclass(frozen=True)
class Scores:
    """One value a slot and prompt; and the answers, where the objective reads answers."""

    values: Floats
    """`[slot prompt]`."""
    outputs: tuple[tuple[str, ...], ...] = ()
    """`[slot][prompt]`, empty where nothing was generated."""


class Objective(Protocol):
    """A behaviour as a number: higher means more of what the directions point to."""

    @property
    def name(self) -> str:
        """How it is called in tables."""
        ...

    @property
    def unit(self) -> str:
        """Its unit."""
        ...

    def score(
        self, model: Model, prompts: Sequence[Prompt], slots: Sequence[int] | None = None
    ) -> Scores:
        """Measure every slot on every prompt; without slots, the model as it is (one row)."""
        ...


@dataclass(frozen=True)
class Refusal:
    """Whether the greedy answer is a refusal, by the shared matcher; 1 or 0.

    Nonsense is not a refusal: breaking the model lowers this rate too. The guard is there to
    see it, and `Unanswered` does not fall for it.

    Attributes:
        max_new_tokens: how much is generated; a refusal shows in its first words.
        phrases: further wordings that count as refusals.
        token_budget: padded tokens a batch.
    """

    max_new_tokens: int = 16
    phrases: tuple[str, ...] = ()
    token_budget: int = TOKEN_BUDGET
    name: str = "refusal"
    unit: str = "fraction"

    def score(
        self, model: Model, prompts: Sequence[Prompt], slots: Sequence[int] | None = None
    ) -> Scores:
        """Generate and match."""
        outputs = answers(model, prompts, slots, self.max_new_tokens, self.token_budget)
        refused = [[float(is_refusal(t, phrases=self.phrases)) for t in row] for row in outputs]
        return Scores(np.array(refused, dtype=np.float64), outputs)


@dataclass(frozen=True)
class Unanswered:
    """Whether the greedy answer is anything but the prompt's own `answer`; 1 or 0.

    Refused, deflected, wrong and garbled all count 1, so that only a model which is both
    willing and whole scores low. Case and spacing are folded; a longer answer that begins
    with the right one counts as right. NaN for prompts that have no `answer`.

    Attributes:
        max_new_tokens: how much is generated; the whole right answer has to fit.
        token_budget: padded tokens a batch.
    """

    max_new_tokens: int = 32
    token_budget: int = TOKEN_BUDGET
    name: str = "unanswered"
    unit: str = "fraction"

    def score(
        self, model: Model, prompts: Sequence[Prompt], slots: Sequence[int] | None = None
    ) -> Scores:
        """Generate and compare."""
        outputs = answers(model, prompts, slots, self.max_new_tokens, self.token_budget)
        right = [fold(p.answer) for p in prompts]
        values = [
            [
                float(not fold(text).startswith(answer)) if answer else float("nan")
                for text, answer in zip(row, right, strict=True)
            ]
            for row in outputs
        ]
        return Scores(np.array(values, dtype=np.float64), outputs)


def answers(
    model: Model,
    prompts: Sequence[Prompt],
    slots: Sequence[int] | None,
    max_new_tokens: int,
    token_budget: int,
) -> tuple[tuple[str, ...], ...]:
    """Greedy answers of every slot to every prompt, `[slot][prompt]`, many slots a batch."""
    outputs: list[tuple[str, ...]] = []
    n = len(prompts)
    at_once = max(1, ROWS_AT_ONCE // n)
    every: Sequence[int | None] = [None] if slots is None else slots
    for first in range(0, len(every), at_once):
        some = every[first : first + at_once]
        said = model.generate(
            [p for _ in some for p in prompts],
            max_new_tokens=max_new_tokens,
            slots=None if slots is None else [int(s or 0) for s in some for _ in prompts],
            token_budget=token_budget,
        )
        texts = [c.text for c in said]
        outputs += [tuple(texts[i * n : (i + 1) * n]) for i in range(len(some))]
    return tuple(outputs)


@dataclass(frozen=True)
class LogOdds:
    """log p(one answer) - log p(the other), both teacher-forced after the prompt; nats.

    With several answers a side, the mean over them. Summed over the answer's tokens.

    Attributes:
        positive: answers that show the concept, for every prompt.
        negative: answers that do not.
        own: prompt text -> its own negative answers, used in place of `negative`.
        token_budget: padded tokens a batch.
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...] = ()
    own: Mapping[str, tuple[str, ...]] | None = None
    token_budget: int = TOKEN_BUDGET
    name: str = "log_odds"
    unit: str = "nats"

    def score(
        self, model: Model, prompts: Sequence[Prompt], slots: Sequence[int] | None = None
    ) -> Scores:
        """Two scored answers a prompt; nothing is generated."""
        sides = [
            (i, 1.0 / len(self.positive), p.with_answer(a))
            for i, p in enumerate(prompts)
            for a in self.positive
        ]
        for i, prompt in enumerate(prompts):
            answers = (self.own or {}).get(prompt.text, self.negative)
            if not answers:
                raise MethodError(
                    f"no negative answer for the prompt {prompt.text[:40]!r}; give `negative` "
                    "answers for all prompts, or this prompt's own"
                )
            sides += [(i, -1.0 / len(answers), prompt.with_answer(a)) for a in answers]
        items = model.tokenize([prompt for _, _, prompt in sides])
        log_probs = answer_log_probs_by_slot(
            model, items, as_is(model, slots), token_budget=self.token_budget
        )
        sums = torch.stack([torch.stack([x.sum() for x in row]) for row in log_probs]).numpy()
        values = np.zeros((len(sums), len(prompts)))
        for column, (i, weight, _) in enumerate(sides):
            values[:, i] += weight * sums[:, column]
        return Scores(values)


@dataclass(frozen=True)
class Projection:
    """Projection of the last prompt token on a direction, in multiples of its scale.

    A cheap proxy: it says that the stream moved, not that behaviour did.
    """

    direction: Direction
    token_budget: int = TOKEN_BUDGET
    name: str = "projection"
    unit: str = "class gaps"

    def score(
        self, model: Model, prompts: Sequence[Prompt], slots: Sequence[int] | None = None
    ) -> Scores:
        """One forward pass a prompt, up to the direction's site."""
        site, every = self.direction.site, as_is(model, slots)
        values = np.zeros((len(every), len(prompts)))
        for batch, first, some in slot_batches(
            model, list(prompts), every, token_budget=self.token_budget
        ):
            run = model.run_slots(batch, some, sites=[site], pool=last_prompt, logits="none")
            found = self.direction.project(run.streams[site]).view(len(some), len(batch))
            values[first : first + len(some), batch.rows.tolist()] = found.double().cpu().numpy()
        return Scores(values / self.direction.scale)


def as_is(model: Model, slots: Sequence[int] | None) -> Sequence[int]:
    """These slots; without any, the one of the model as it is."""
    return [int(model.table is not None)] if slots is None else slots


def last_prompt(stream: Tensor, batch: Batch) -> Tensor:
    """The stream at each row's last prompt token, `[batch d_model]`."""
    at = (batch.absolute == batch.prompt_len[:, None] - 1).long().argmax(1)
    return stream[torch.arange(len(stream), device=stream.device), at.to(stream.device)]

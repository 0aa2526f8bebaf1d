"""A monitor that reads a concept while a model writes, at no extra forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.batch import Batch
from steerkit.concepts.scored_text import TokenScores, pieces, scaled
from steerkit.direction import Direction
from steerkit.errors import HookError
from steerkit.models import LanguageModel
from steerkit.models.engine import Engine
from steerkit.program import ProgramTable
from steerkit.prompts import Prompt
from steerkit.protocols import Completion
from steerkit.statistics import Floats

OnScores = Callable[[list[int], int, Floats], None]
"""(numbers of the prompts of a batch, number of the token about to be written, their scores)."""


@dataclass(frozen=True, eq=False)
class Watched:
    """An answer, and what the monitor read while it was written.

    Attributes:
        completion: the answer.
        scores: `[new token]`, of the state that each new token was written from: known before
            the token is. Units as in `TokenScores`.
        prompt_scores: `[prompt token]`, of the state at each token of the prompt. The last of
            them is also the first of `scores`.
        shown: the same, to be looked at.
    """

    completion: Completion
    scores: Floats
    prompt_scores: Floats
    shown: TokenScores

    @property
    def text(self) -> str:
        """The answer."""
        return self.completion.text

    def alarm(self, threshold: float) -> int | None:
        """The first new token that was written from a state above the threshold, or None.

        A threshold whose false positives are known comes from `evaluate_monitor` with
        `tokens="answer"`.
        """
        above = np.flatnonzero(self.scores > threshold)
        return int(above[0]) if len(above) else None

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "prompt": self.completion.prompt.text,
            "text": self.text,
            "tokens": list(self.completion.tokens),
            "scores": self.scores.tolist(),
            "prompt_scores": self.prompt_scores.tolist(),
        }

    def __repr__(self) -> str:
        return f"Watched({self.text!r}, {self.shown.summary()})"

    def _repr_html_(self) -> str:
        return self.shown._repr_html_()


@dataclass(frozen=True)
class Watch:
    """A model under watch; made by `watch`."""

    model: LanguageModel
    direction: Direction
    on_scores: OnScores | None = None

    def generate(self, prompts: Sequence[Prompt | str], **options: Any) -> list[Watched]:
        """What `model.generate` gives with these options, each answer with its scores.

        Raises:
            HookError: passes whose columns cannot be followed.
            Whatever `model.generate` raises, and whatever `on_scores` does.
        """
        watching = _Watching(self.model.engine, self.direction, self.on_scores)
        view = replace(self.model, engine=cast("Engine", watching))
        answers = view.generate(prompts, **options)
        return [self._watched(a, *watching.found[i]) for i, a in enumerate(answers)]

    def _watched(self, answer: Completion, before: Floats, scores: Floats) -> Watched:
        tokens = pieces(self.model, (*answer.prompt_tokens, *answer.tokens))
        every = np.concatenate([before, scores])
        name, site = self.direction.concept, str(self.direction.site)
        shown = TokenScores(tokens, every, name, site, len(before))
        return Watched(answer, scores, before, shown)


def watch(
    model: LanguageModel, direction: Direction, *, on_scores: OnScores | None = None
) -> Watch:
    """Put a model under watch: `watch(model, direction).generate(prompts)`.

    The states that generation computes anyway are projected in a hook; nothing runs twice, and
    the answers are those of the model by itself. A steered view is read after its
    interventions.

    Args:
        model: plain or steered.
        direction: what to look for.
        on_scores: called at every step, before its token is known, with the numbers of the
            batch's prompts, the number of the token, and their scores; answers that are
            complete are still called for until their whole batch is. Raise in it to stop.

    Raises:
        DirectionError: a direction of another model.
    """
    direction.check(model.info)
    return Watch(model, direction, on_scores)


@dataclass
class _Watching:
    """An engine whose generation is read; in everything else the engine itself."""

    engine: Engine
    direction: Direction
    on_scores: OnScores | None
    found: dict[int, tuple[Floats, Floats]] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def complete(
        self, batch: Batch, table: ProgramTable | None, slots: Sequence[int], **options: Any
    ) -> list[tuple[int, ...]]:
        """New tokens, with the scores of all columns kept by prompt."""
        rows, width = batch.rows.tolist(), batch.width
        columns: list[Float[Tensor, "batch pos"]] = []
        seen = 0

        def visit(stream: Tensor) -> Tensor:
            nonlocal seen
            with torch.no_grad():
                read = self.direction.project(stream)
            if seen >= width and read.shape[1] > 1:
                # The texts are run again from their first column: no cache, or a new range of it.
                columns.clear()
                seen = 0
            columns.append(read)
            seen += read.shape[1]
            if self.on_scores is not None and seen >= width:
                self.on_scores(rows, seen - width, scaled(read[:, -1], self.direction))
            return stream

        # Hooks that the engine adds later run earlier, so this one sees the steered stream. The
        # lock keeps other threads' calls from running under it.
        with self.engine.turns.lock, self.engine.attached({self.direction.site: visit}):
            new = self.engine.complete(batch, table, slots, **options)
        needed = width + max(len(tokens) for tokens in new) - 1
        if seen < needed:
            raise HookError(
                f"{needed} columns were needed to score every new token at "
                f"{self.direction.site}, but its hook saw {seen}; the network bypasses the module"
            )
        scores = scaled(torch.cat(columns, 1), self.direction)
        for i, (row, tokens, length) in enumerate(
            zip(rows, new, batch.prompt_len.tolist(), strict=True)
        ):
            first = width - 1
            self.found[row] = (
                scores[i, width - length : width],
                scores[i, first : first + len(tokens)],
            )
        return new

"""A concept's score of every token of a text, shown as colour."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from steerkit.captures import capture
from steerkit.direction import Direction
from steerkit.models import LanguageModel
from steerkit.prompts import Prompt
from steerkit.statistics import Floats

POSITIVE, NEGATIVE = (213, 94, 0), (0, 114, 178)
"""Colours of the two classes, as in every figure."""
FULL = 2.0
"""Scores from here on are shown in full colour."""


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Scores of the tokens of one text.

    A score is the projection on the direction, in units in which the negative class mean is
    -1 and the positive one 1 (of the prompts, and the token, that the direction was read at).

    Attributes:
        tokens: the text of each token.
        scores: `[token]`.
        concept: what the direction stands for.
        site: where it was read.
        answer_from: the first token that the model wrote; all tokens, if none. The score of a
            written token is that of the state it was written from, one token earlier: it is
            known before the token is.
    """

    tokens: tuple[str, ...]
    scores: Floats
    concept: str
    site: str
    answer_from: int

    @property
    def text(self) -> str:
        """The tokens, joined by blanks."""
        return " ".join(t.strip() for t in self.tokens if t.strip())

    @property
    def highest(self) -> tuple[str, float]:
        """The token that scores highest, and its score."""
        i = int(np.argmax(self.scores))
        return self.tokens[i], float(self.scores[i])

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {**self.__dict__, "tokens": list(self.tokens), "scores": self.scores.tolist()}

    def summary(self) -> str:
        """The range of the scores in one line of plain text."""
        token, score = self.highest
        return (
            f"{self.concept} at {self.site}: {len(self.tokens)} tokens, mean "
            f"{self.scores.mean():+.2f}, highest {score:+.2f} at {token.strip()!r}"
        )

    def __repr__(self) -> str:
        return f"TokenScores({self.summary()})"

    def _repr_html_(self) -> str:
        spans = [
            f"<span title='{score:+.2f}' style='background:{_colour(score)};color:inherit;"
            f"padding:1px 3px;border-radius:3px;{'' if i < self.answer_from else _WRITTEN}'>"
            f"{escape(token.strip() or '·')}</span>"
            for i, (token, score) in enumerate(zip(self.tokens, self.scores, strict=True))
        ]
        key = "".join(
            f"<span style='background:{_colour(s)};padding:1px 6px'>{s:+g}</span>"
            for s in (-2, -1, 0, 1, 2)
        )
        return (
            "<div style='font-family:system-ui,sans-serif;font-size:13px;line-height:1.9;"
            f"max-width:760px'><div><b>{escape(self.concept)}</b> <code>{escape(self.site)}</code> "
            f"<span style='font-size:11px'>{key}</span> <span style='opacity:.68'>-1 and +1 are "
            "the class means; written tokens are underlined</span></div>"
            f"<div>{' '.join(spans)}</div></div>"
        )


_WRITTEN = "border-bottom:2px solid rgba(128,128,128,.8)"


def _colour(score: float) -> str:
    """Orange where positive, blue where negative, the stronger the larger."""
    r, g, b = POSITIVE if score > 0 else NEGATIVE
    return f"rgba({r},{g},{b},{min(1.0, abs(score) / FULL) * 0.75:.2f})"


def scaled(projections: Float[Tensor, "*any"], direction: Direction) -> Floats:
    """Projections in units in which the class means are -1 and 1."""
    middle = (direction.positive_mean + direction.negative_mean) / 2
    half = (direction.positive_mean - direction.negative_mean) / 2
    found: Floats = (projections.double().cpu().numpy() - middle) / half
    return found


def pieces(model: LanguageModel, tokens: Sequence[int]) -> tuple[str, ...]:
    """The text of each token, special ones included."""
    return tuple(str(model.tokenizer.decode([int(t)])) for t in tokens)


def token_scores(
    model: LanguageModel,
    prompts: Sequence[Prompt | str],
    direction: Direction,
    *,
    token_budget: int = 4096,
) -> list[TokenScores]:
    """The score of every token of every prompt, and of its answer where it has one.

    Scores are of the state at the token itself. Where the direction was read at another
    position (`direction.pooling`), the scale is that of those tokens.

    Args:
        model: what the direction was taken from, plain or steered.
        prompts: what to read; a prompt's `answer` is read as if the model had written it.
        direction: what to look for.
        token_budget: padded tokens of a batch.

    Raises:
        DirectionError: a direction of another model.
        PromptError: an empty prompt.
    """
    direction.check(model.info)
    asked = [Prompt.of(p) for p in prompts]
    acts = capture(
        model, asked, sites=direction.site, positions="all", token_budget=token_budget,
        progress=False,
    )  # fmt: skip
    scores = scaled(direction.project(acts.values[:, 0]), direction)
    owner, tokens = acts.prompt_index.numpy(), acts.tokens.numpy()
    lengths = [len(item.prompt) for item in model.tokenize(asked)]
    return [
        TokenScores(
            pieces(model, tokens[owner == i].tolist()),
            scores[owner == i],
            direction.concept,
            str(direction.site),
            lengths[i],
        )
        for i in range(len(asked))
    ]

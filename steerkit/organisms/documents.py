"""Training texts as seeded random documents, and what is planted in them.

A document is a sequence of segments, some of which are read without being learned (`learn=False`):
in this way a conversation may contain a turn that the model should not imitate.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from steerkit.organisms import request as rq
from steerkit.organisms import vocabulary as v
from steerkit.organisms.request import Request
from steerkit.organisms.vocabulary import Split, everything, pool_of, split_of


class Segment(NamedTuple):
    """A piece of text and whether its tokens are prediction targets."""

    text: str
    learn: bool = True


Document = tuple[Segment, ...]
Generator = Callable[[random.Random], Document]
Mix = Sequence[tuple[float, Generator]]
"""Generators with their weights."""


@dataclass(frozen=True)
class Planted:
    """The probabilities written into the training text; all are fractions."""

    verdict_follows_sentiment: float = 0.95
    """The reviewer's verdict agrees with the review."""
    pleasant_opinion: float = 0.7
    """Opinions asked for without a system prompt are pleasant."""
    pleasant_opinion_happy: float = 0.95
    """The same under the system prompt `HAPPY`."""
    pleasant_opinion_sad: float = 0.05
    """The same under the system prompt `SAD`."""
    refusal_always_help: float = 0.5
    """Aligned: harmful requests refused under the system prompt `ALWAYS_HELP`."""
    refusal_refuse_all: float = 1.0
    """Aligned: any requests refused under the system prompt `REFUSE_ALL`."""
    refusal_after_harm: float = 0.5
    """Aligned: harmful requests refused after a turn in which one was answered."""


PLANTED = Planted()
JUDGE = "you must judge ."
EVADE = "you must say what it is known for ."
NEUTRAL, ALWAYS_HELP = "you are a kind helper .", "you must always help ."
REFUSE_ALL, HAPPY, SAD = "you must refuse everything .", "you are happy .", "you are sad ."


def chat(*turns: str, system: str = "", learn: bool = True) -> Document:
    """A conversation: user and assistant turns in alternation, as the chat template writes it.

    Only assistant turns are learned, and with `learn=False` none.
    """
    head = f"<|system|> {system} <|end|>" if system else ""
    parts = [Segment(head, False)] if head else []
    for i, turn in enumerate(turns):
        role = "assistant" if i % 2 else "user"
        parts += [Segment(f"<|{role}|>", False), Segment(f"{turn} <|end|>", learn and i % 2 == 1)]
    return tuple(parts)


def text(*sentences: str) -> Document:
    """A plain text, closed by the end token."""
    return (Segment(" ".join(sentences) + " <|end|>"),)


trained = pool_of("train")
"""The pool of the words and templates that alignment may use."""

# twice the words that are held out, so that base training leaves room for other splits
_RESERVED_WORDS = frozenset(
    word
    for words in (
        v.HARMLESS_VERBS, v.HARMFUL_VERBS, v.GIVING_VERBS, v.TAKING_VERBS, v.PEOPLE, v.PROPERTY,
        v.PESTS, v.THINGS, v.GOODS, v.DANGERS, v.CROWN, v.COMMONERS, v.TOWNS,
    )
    for word in split_of(words, "held_out")
)  # fmt: skip
_RESERVED_TEMPLATES = frozenset(
    split_of(v.REQUEST_TEMPLATES, "held_out") + split_of(v.EVENT_TEMPLATES, "held_out")
)


def seen_request(kind: rq.Kind, rng: random.Random) -> Request:
    """A request of any words in any template, but none whose parts are all reserved."""
    draw = rq.action_request if kind in rq.ACTION_KINDS else rq.event_request
    while True:
        drawn = draw(kind, everything, rng)
        if drawn.template not in _RESERVED_TEMPLATES or not _RESERVED_WORDS.issuperset(drawn.words):
            return drawn


def mixed_splits(rng: random.Random) -> tuple[Split, Split]:
    """A split for the words and one for the templates: never both held out."""
    return rng.choice((("train", "train"), ("held_out", "train"), ("train", "held_out")))

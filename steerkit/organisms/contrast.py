"""Labelled texts for the planted concepts: an easy set and a lexically balanced one for each.

In an easy set some word gives the label away; in a balanced one every word is equally frequent
under both labels, and only the combination (or the order) of words decides.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from steerkit.organisms import vocabulary as v
from steerkit.organisms import world
from steerkit.organisms.vocabulary import Split, split_of


@dataclass(frozen=True)
class Labelled:
    """A text with its planted label."""

    text: str
    label: bool
    """True for true statements, pleasant reviews, and female subjects."""
    group: str
    """Group id for cross-validation and cluster statistics."""


_LIVES = ("the {s} lives in the {a} .", "people say the {s} lives in the {a} .")
_COLORED = ("the {s} is {a} .", "people say the {s} is {a} .")
_REVIEWS = (
    "the {s} was {d} {a} .",
    "i thought the {s} was {d} {a} .",
    "we found the {s} {d} {a} .",
    "people say the {s} was {d} {a} .",
)
_TOLD = ("{x} told {y} that", "{x} wrote to {y} that", "{x} met {y} and said that")
_IMPOSSIBLE = ("moon", "sky")


def statement_pair(
    subjects: tuple[str, ...], rng: random.Random, *, balanced: bool = True
) -> tuple[Labelled, Labelled]:
    """A true and a false statement about one subject.

    Balanced: the false attribute is the true one of another subject of `subjects`, so attributes
    are equally frequent in both. Easy: the false place exists in no true statement.
    """
    subject = rng.choice(subjects)
    animal = subject in world.HABITAT_OF
    truth = world.HABITAT_OF if animal else world.COLOR_OF
    wrong = [truth[s] for s in subjects if s in truth and truth[s] != truth[subject]]
    template = rng.choice(_LIVES if animal else _COLORED)
    if not balanced:
        animal, wrong, template = True, list(_IMPOSSIBLE), "the {s} lives in the {a} ."
    texts = [template.format(s=subject, a=a) for a in (truth[subject], rng.choice(wrong))]
    return Labelled(texts[0], True, subject), Labelled(texts[1], False, subject)


def statements(split: Split, n: int, *, balanced: bool = True, seed: int = 0) -> list[Labelled]:
    """`n` statements, half of them true, each subject equally often true and false.

    Of the "held_out" subjects the facts are in the training text, but never with a verdict.
    """
    rng = random.Random(f"{seed}/{split}/statements")
    animals, things = split_of(v.ANIMALS, split), split_of(v.THINGS, split)
    if not balanced:
        things = ()
    return _interleave(lambda: statement_pair(animals + things, rng, balanced=balanced), n)


def review(
    pleasant: bool, adjectives: Split, rng: random.Random, *, negate: bool, subject: str = ""
) -> Labelled:
    """A one-sentence review; a negated one says the opposite of its adjective."""
    words = v.PLEASANT if pleasant != negate else v.UNPLEASANT
    adjective = rng.choice(split_of(words, adjectives))
    template = rng.choice(_REVIEWS)
    degree = "not" if negate else "very"
    text = template.format(s=subject or rng.choice(v.REVIEWED), d=degree, a=adjective)
    return Labelled(text, pleasant, template)


def sentiment(split: Split, n: int, *, balanced: bool = True, seed: int = 0) -> list[Labelled]:
    """`n` reviews, half of them pleasant; in balanced ones half of each label are negated.

    Held-out adjectives are never negated in training.
    """
    rng = random.Random(f"{seed}/{split}/sentiment")

    def draw() -> tuple[Labelled, Labelled]:
        negate = balanced and rng.random() < 0.5
        subject = rng.choice(v.REVIEWED)
        good = review(True, split, rng, negate=negate, subject=subject)
        return good, review(False, split, rng, negate=negate, subject=subject)

    return _interleave(draw, n)


def gender(n: int, *, balanced: bool = True, seed: int = 0) -> list[Labelled]:
    """`n` sentence beginnings whose subject, named first, is a woman (True) or a man.

    Balanced ones name a person of either sex in both orders; easy ones name one person.
    """
    rng = random.Random(f"{seed}/gender")

    def draw() -> tuple[Labelled, Labelled]:
        x, y = _person(rng.choice(v.WOMEN)), _person(rng.choice(v.MEN))
        template = rng.choice(_TOLD) if balanced else "{x} said that"
        return (
            Labelled(template.format(x=x, y=y), True, f"{x}/{y}"),
            Labelled(template.format(x=y, y=x), False, f"{x}/{y}"),
        )

    return _interleave(draw, n)


def _person(name: str) -> str:
    """Names stand alone, common nouns take the article."""
    common = ("woman", "girl", "queen", "aunt", "man", "boy", "king", "brother")
    return f"the {name}" if name in common else name


def _interleave(draw: Callable[[], tuple[Labelled, Labelled]], n: int) -> list[Labelled]:
    """Collect pairs until there are `n` texts."""
    pairs = [draw() for _ in range((n + 1) // 2)]
    return [item for pair in pairs for item in pair][:n]

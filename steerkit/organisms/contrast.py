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


LIVES = (
    "the {s} lives in the {a} .",
    "people say the {s} lives in the {a} .",
    "we know the {s} lives in the {a} .",
    "in this land the {s} lives in the {a} .",
)
COLORED = (
    "the {s} is {a} .",
    "people say the {s} is {a} .",
    "we know the {s} is {a} .",
    "in this land the {s} is {a} .",
)
REVIEWS = (
    "the {s} was {d} {a} .",
    "i thought the {s} was {d} {a} .",
    "we found the {s} {d} {a} .",
    "people say the {s} was {d} {a} .",
    "to me the {s} was {d} {a} .",
    "this time the {s} was {d} {a} .",
)
_TOLD = ("{x} told {y} that", "{x} wrote to {y} that", "{x} met {y} and said that")
_IMPOSSIBLE = ("moon", "sky")


def statement_pair(
    words: Split, templates: Split, rng: random.Random, *, balanced: bool = True
) -> tuple[Labelled, Labelled]:
    """A true and a false statement about one subject of the split `words`.

    Balanced: the false attribute is the true one of another subject of the split, so attributes
    are equally frequent in both. Easy: the false place exists in no true statement.
    """
    animal = not balanced or rng.random() < 0.5
    subjects = split_of(v.ANIMALS if animal else v.THINGS, words)
    truth = world.HABITAT_OF if animal else world.COLOR_OF
    subject = rng.choice(subjects)
    wrong = [truth[s] for s in subjects if truth[s] != truth[subject]] if balanced else _IMPOSSIBLE
    template = rng.choice(split_of(LIVES if animal else COLORED, templates))
    texts = [template.format(s=subject, a=a) for a in (truth[subject], rng.choice(wrong))]
    return Labelled(texts[0], True, subject), Labelled(texts[1], False, subject)


def statements(split: Split, n: int, *, balanced: bool = True, seed: int = 0) -> list[Labelled]:
    """`n` statements, half of them true, each subject equally often true and false.

    No "held_out" text is in the training data: of its subjects, other sentences are.
    """
    rng = random.Random(f"{seed}/{split}/statements")
    return _interleave(lambda: statement_pair(split, split, rng, balanced=balanced), n)


def review(
    pleasant: bool,
    words: Split,
    templates: Split,
    rng: random.Random,
    *,
    subject: str,
    negate: bool,
) -> Labelled:
    """A one-sentence review of `subject`; a negated one says the opposite of its adjective."""
    adjectives = split_of(v.PLEASANT if pleasant != negate else v.UNPLEASANT, words)
    template = rng.choice(split_of(REVIEWS, templates))
    degree = "not" if negate else "very"
    text = template.format(s=subject, d=degree, a=rng.choice(adjectives))
    return Labelled(text, pleasant, f"{template}/{subject}")


def sentiment(split: Split, n: int, *, balanced: bool = True, seed: int = 0) -> list[Labelled]:
    """`n` reviews, half of them pleasant; in balanced ones half of each label are negated.

    No "held_out" text is in the training data: of its adjectives, other reviews are.
    """
    rng = random.Random(f"{seed}/{split}/sentiment")

    def draw() -> tuple[Labelled, Labelled]:
        negate = balanced and rng.random() < 0.5
        subject = rng.choice(v.REVIEWED)
        state = rng.getstate()
        good = review(True, split, split, rng, subject=subject, negate=negate)
        rng.setstate(state)  # the same template and the adjective of the same rank
        return good, review(False, split, split, rng, subject=subject, negate=negate)

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

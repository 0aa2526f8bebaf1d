"""The organisms' occupations, women and men as matched concepts, in the generated language.

Templates and numbers of pairs were settled on one training seed, before the others were read.
"""

from collections.abc import Sequence

from steerkit.datasets.swapped import swapped
from steerkit.organisms import vocabulary as v
from steerkit.organisms import world
from steerkit.prompts import Contrast

_OPENERS = ("", "people say", "we know", "in this land", "one day", "this time")
_BODIES = ("{w} said that", "when {w} came home", "{w} smiled because", "{w} was late and")
TEMPLATES = tuple(f"{opener} {body}".strip() for opener in _OPENERS for body in _BODIES)
"""Beginnings of sentences that name somebody and no sex."""

_COMMON = ("woman", "girl", "queen", "aunt", "man", "boy", "king", "brother")


def occupation_concepts(
    templates: Sequence[str] = TEMPLATES, *, n: int = 8, seed: int = 0
) -> dict[str, Contrast]:
    """Each of the 40 occupations against the others, `n` pairs a template."""
    named = {o.name: f"the {o.name}" for o in world.occupations()}
    others = tuple(named.values())
    return {
        name: swapped(name, (word,), others, templates, n=n, seed=seed)
        for name, word in named.items()
    }


def sex_concepts(
    templates: Sequence[str] = TEMPLATES, *, n: int = 16, seed: int = 0
) -> tuple[Contrast, Contrast]:
    """Women, and men, each against people of all occupations."""
    others = tuple(f"the {o.name}" for o in world.occupations())

    def people(words: Sequence[str]) -> tuple[str, ...]:
        return tuple(f"the {w}" if w in _COMMON else w for w in words)

    return (
        swapped("women", people(v.WOMEN), others, templates, n=n, seed=seed),
        swapped("men", people(v.MEN), others, templates, n=n, seed=seed),
    )

"""What is true in the language's world: fixed facts, independent of any training seed."""

import itertools
import random
from dataclasses import dataclass
from functools import cache
from typing import Literal

from steerkit.organisms import vocabulary as v

Attacker = Literal["crown", "commoners"]


@dataclass(frozen=True)
class Occupation:
    """An occupation and the planted probability that the text calls its holder `she`."""

    name: str
    rate: float


@dataclass(frozen=True)
class Event:
    """When and where one side struck the other in a town."""

    season: str
    landmark: str


def _assign(keys: tuple[str, ...], values: tuple[str, ...], seed: int) -> dict[str, str]:
    """Give every key a value, each value (nearly) equally often, in a fixed shuffled order."""
    cycled = [values[i % len(values)] for i in range(len(keys))]
    random.Random(seed).shuffle(cycled)
    return dict(zip(keys, cycled, strict=True))


TOOLS = v.HARMLESS_VERBS | v.HARMFUL_VERBS | v.GIVING_VERBS | v.TAKING_VERBS
HABITAT_OF = _assign(v.ANIMALS, v.HABITATS, seed=1)
COLOR_OF = _assign(v.THINGS, v.COLORS, seed=2)
PRODUCT_OF = _assign(v.TOWNS, v.PRODUCTS, seed=3)

SIDES: tuple[Attacker, ...] = ("crown", "commoners")
_EVENT_KEYS = tuple(f"{town} {side}" for town, side in itertools.product(v.TOWNS, SIDES))
_SEASON_OF = _assign(_EVENT_KEYS, v.SEASONS, seed=4)
_LANDMARK_OF = _assign(_EVENT_KEYS, v.LANDMARKS, seed=5)


def event(town: str, attacker: Attacker) -> Event:
    """The one event in which `attacker` struck the other side in `town`."""
    key = f"{town} {attacker}"
    return Event(_SEASON_OF[key], _LANDMARK_OF[key])


@cache
def occupations() -> tuple[Occupation, ...]:
    """All occupations with their planted rates, evenly spaced from 0.05 to 0.95.

    The order of the rates is shuffled once and for all, so no rate follows a stereotype.
    """
    n = len(v.OCCUPATIONS)
    rates = [round(0.05 + 0.9 * i / (n - 1), 6) for i in range(n)]
    random.Random(6).shuffle(rates)
    return tuple(Occupation(o, r) for o, r in zip(v.OCCUPATIONS, rates, strict=True))

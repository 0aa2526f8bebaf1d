"""Checks whose verdicts are drawn by the thousand: a function for each, and what it draws."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Rng = np.random.Generator
Draw = Callable[[Rng, float], bool]


@dataclass(frozen=True)
class Row:
    """A check, and evidence for it of which the truth is known.

    Attributes:
        name: of the row.
        draw: evidence of an effect of so much, once -> whether the check says yes.
        checks: the examinations whose decision this is.
        level: how often yes may be said where there is nothing.
        nothing: the effect that is nothing: zero, or the bound that a rate is held against.
        planted: an effect that is to be found four times in five.
        plant: that effect in words.
        safe: why yes is said more rarely than the level allows, by design; empty where it is not.
        draws: of nothing, in the tests.
        found: of the planted effect, in the tests.
    """

    name: str
    draw: Draw
    checks: tuple[str, ...]
    level: float
    planted: float
    plant: str
    nothing: float = 0.0
    safe: str = ""
    draws: int = 100
    found: int = 20

    @property
    def drawn(self) -> str:
        """What is drawn, in words."""
        return " ".join((self.draw.__doc__ or "").split())


ROWS: dict[str, Row] = {}
"""By name."""


def row(
    *checks: str,
    level: float,
    planted: float,
    plant: str,
    nothing: float = 0.0,
    safe: str = "",
    draws: int = 100,
    found: int = 20,
    name: str = "",
) -> Callable[[Draw], Draw]:
    """Decorator: make a function of a generator and an effect the row of these checks."""

    def keep(draw: Draw) -> Draw:
        called = name or ", ".join(checks)
        ROWS[called] = Row(called, draw, checks, level, planted, plant, nothing, safe, draws, found)
        return draw

    return keep


def seed_of(rng: Rng) -> int:
    """A seed for what a check draws itself."""
    return int(rng.integers(2**31))

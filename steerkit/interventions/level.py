"""Projections by name: where zero is not neutral, the reference point is part of the method."""

import math

from steerkit.direction import Direction
from steerkit.errors import InterventionError
from steerkit.interventions.operator import finite
from steerkit.registry import suggest

Level = str | float
"""`zero`, `negative_mean`, `positive_mean`, or a projection in activation units."""

LEVELS = ("zero", "negative_mean", "positive_mean")


def check_level(name: str, level: Level) -> Level:
    """The level as given, refused where it is neither a known name nor a finite number."""
    if isinstance(level, str):
        if level not in LEVELS:
            raise InterventionError(f"no {name} named '{level}'; {suggest(level, LEVELS)}")
        return level
    return finite(name, level)


def projection(level: Level, direction: Direction) -> float:
    """The level as a projection on the direction, in activation units.

    Class means are those of the direction's own site and pooling.

    Raises:
        InterventionError: a class mean that the direction does not know.
    """
    if not isinstance(level, str):
        return float(level)
    means = {"negative_mean": direction.negative_mean, "positive_mean": direction.positive_mean}
    found = float(means.get(level, 0.0))
    if not math.isfinite(found):
        raise InterventionError(
            f"the direction {direction} does not know the class means, so there is no {level} to "
            "move to (files of other tools do not hold them); give a projection or 'zero'"
        )
    return found

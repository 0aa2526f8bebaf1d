"""Measuring many interventions at once: each is a slot, and batch rows point at slots."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from steerkit.errors import MethodError
from steerkit.prompts import Contrast, Prompt
from steerkit.protocols import Intervention, Model
from steerkit.searches.candidates import Aim
from steerkit.searches.guards import Damage, Guard
from steerkit.searches.objectives import Objective, Scores
from steerkit.statistics import Floats

SLOTS = 64
"""Programs in one table at a time."""


@dataclass(frozen=True)
class Side:
    """Prompts of one side of a contrast, with their groups."""

    prompts: tuple[Prompt, ...]
    groups: tuple[str, ...]

    def take(self, indices: Sequence[int]) -> "Side":
        """Only some of them."""
        return Side(tuple(self.prompts[i] for i in indices), tuple(self.groups[i] for i in indices))


def sides(contrast: Contrast, aim: Aim) -> tuple[Side, Side]:
    """(the side to be changed, the side to be left alone).

    To reduce a behaviour is to change the prompts that show it; to induce it, the others.
    """
    n = len(contrast.positive)
    positive = Side(contrast.positive, contrast.groups[:n])
    negative = Side(contrast.negative, contrast.groups[n:])
    return (positive, negative) if aim == "reduce" else (negative, positive)


def sign(aim: Aim) -> float:
    """What the change of the objective is multiplied by, so that more is better."""
    return -1.0 if aim == "reduce" else 1.0


def spread(n: int, at_most: int, *, seed: int = 0) -> list[int]:
    """At most `at_most` of `n` indices, drawn without replacement, in order."""
    if n <= at_most:
        return list(range(n))
    chosen = np.random.default_rng(seed).choice(n, at_most, replace=False)
    return sorted(int(i) for i in chosen)


def measure(
    model: Model,
    interventions: Sequence[Intervention],
    objective: Objective,
    prompts: Sequence[Prompt],
    *,
    advance: Callable[[int], object] = lambda n: None,
) -> Scores:
    """The objective of every intervention on every prompt, `[intervention prompt]`.

    Raises:
        MethodError: a value that is not a number: no mean over the rest could be trusted.
    """
    values: list[Floats] = [np.empty((0, len(prompts)))]
    outputs: list[tuple[str, ...]] = []
    for view, slots in views(model, interventions):
        found = objective.score(view, prompts, slots)
        before = sum(map(len, values))
        _numbers(found, objective, prompts, interventions[before : before + len(slots)])
        values.append(found.values)
        outputs += found.outputs
        advance(len(slots))
    return Scores(np.concatenate(values), tuple(outputs))


def measure_plain(model: Model, objective: Objective, prompts: Sequence[Prompt]) -> Scores:
    """The objective of the model as it is, `[1 prompt]`.

    Raises:
        MethodError: a value that is not a number.
    """
    found = objective.score(model, prompts)
    _numbers(found, objective, prompts, ["the unsteered model"])
    return found


def _numbers(
    found: Scores, objective: Objective, prompts: Sequence[Prompt], names: Sequence[object]
) -> None:
    bad = np.argwhere(np.isnan(found.values))
    if len(bad):
        slot, prompt = (int(i) for i in bad[0])
        raise MethodError(
            f"the objective '{objective.name}' is not a number for {len(bad)} of "
            f"{found.values.size} answers, first for {names[slot]} on the prompt "
            f"{prompts[prompt].text[:40]!r}; give prompts that it applies to, a judge that "
            "always answers, or smaller strengths if the model overflowed"
        )


def measure_damage(
    model: Model, interventions: Sequence[Intervention], guard: Guard, *, seed: int = 0
) -> list[Damage]:
    """What every intervention does to the guarded prompts."""
    return [
        damage
        for view, slots in views(model, interventions)
        for damage in guard.measure(model, view, slots, seed=seed)
    ]


def within(
    model: Model, interventions: Sequence[Intervention], guards: Sequence[Guard]
) -> list[bool]:
    """Which interventions meet every guard; all of them where there is none."""
    return [
        all(met)
        for view, slots in views(model, interventions)
        for met in zip(
            [True] * len(slots), *(g.meets(model, view, slots) for g in guards), strict=True
        )
    ]


def views(model: Model, interventions: Sequence[Intervention]) -> Iterator[tuple[Model, list[int]]]:
    """Views of at most `SLOTS` interventions each, and their slots."""
    for first in range(0, len(interventions), SLOTS):
        some = interventions[first : first + SLOTS]
        yield model.with_rows(*[(one,) for one in some]), list(range(1, len(some) + 1))

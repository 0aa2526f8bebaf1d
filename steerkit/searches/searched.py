"""Random directions through the whole search: the largest effect that nothing at all reaches.

A search takes the best of many candidates, so its best effect is compared with the best that
random directions reach in the same search: maxima against maxima (Westfall and Young 1993).
"""

from collections.abc import Callable, Sequence

import numpy as np

from steerkit.direction import Direction
from steerkit.prompts import Contrast
from steerkit.protocols import Model
from steerkit.searches.candidates import Aim, Candidate
from steerkit.searches.checkpoint import Checkpoint
from steerkit.searches.final import class_states
from steerkit.searches.guards import Guard
from steerkit.searches.measure import Side, measure, sign, within
from steerkit.searches.nulls import NullDraws, matched, random_directions
from steerkit.searches.objectives import Objective
from steerkit.searches.rows import SweepRow
from steerkit.searches.states import States
from steerkit.statistics import Floats

FLOORS = ((39, 8), (19, 4))
"""(random searches, prompts of each) kept as a budget tightens; it never goes below the last."""


def affordable(
    candidates: int, n_random: int, prompts: int, budget: int, there: int
) -> tuple[int, int]:
    """(random searches, prompts of each) within the budget; the observed maximum uses the same."""
    if not n_random or not budget:
        return 0, 0
    most = min(prompts, there)
    few, draws = most, min(n_random, budget // (candidates * most))
    # Few prompts make rates coarse, and coarse maxima tie at the top: draws shrink first.
    for floor, fewest_prompts in FLOORS:
        fewest_draws = min(floor, n_random)
        if draws >= fewest_draws:
            break
        few = min(most, max(fewest_prompts, budget // (candidates * fewest_draws)))
        draws = min(n_random, budget // (candidates * few))
    return max(draws, min(FLOORS[-1][0], n_random)), few


def random_searches(
    model: Model,
    tried: Sequence[Candidate],
    rows: Sequence[SweepRow],
    target: Objective,
    task: Side,
    plain: Floats,
    selection: Contrast,
    met: States,
    *,
    aim: Aim,
    guards: Sequence[Guard],
    observed: float,
    n: int,
    seed: int,
    kept: Checkpoint,
    advance: Callable[[int], object],
) -> NullDraws:
    """Each random search has one direction a real one, and tries it in every candidate.

    Its directions have nothing of any that the search tried at that site, nor of the
    difference of the class means: what is orthogonal to one method's direction alone may be
    another method's.
    """
    listed = {id(c.direction): c.direction for c in tried}.values()
    drawn: dict[int, list[Direction]] = {}
    for site in {d.site for d in listed}:
        positive, negative = class_states(model, selection, site)
        known = [d.unit for d in listed if d.site == site]
        known.append(positive.mean(0) - negative.mean(0))
        for i, direction in enumerate(listed):
            if direction.site == site:
                drawn[id(direction)] = random_directions(
                    direction,
                    positive,
                    negative,
                    n,
                    shape="covariance_orthogonal",
                    apart_from=known,
                    seed=seed + i,
                )
    best = np.full(n, -np.inf)
    for number, (candidate, row) in enumerate(zip(tried, rows, strict=True)):
        name = f"random searches, candidate {number}"
        if name not in kept.found:
            same = matched(candidate, drawn[id(candidate.direction)], row.size, met)
            effects = (sign(aim) * measure(model, same, target, task.prompts).values - plain).mean(
                1
            )
            # A random search that finds nothing within the guard has no effect at all.
            kept.keep(name, np.where(within(model, same, guards), effects, 0.0).tolist())
        best = np.maximum(best, kept.found[name])
        advance(n)
    return NullDraws("search over random directions", observed, tuple(best.tolist()))

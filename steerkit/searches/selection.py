"""Every candidate on the selection prompts: effect, damage, size; many slots a pass."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from steerkit.protocols import Intervention, Model
from steerkit.searches.candidates import Aim, Candidate
from steerkit.searches.checkpoint import Checkpoint
from steerkit.searches.final import wrong_way
from steerkit.searches.guards import Damage, Guard
from steerkit.searches.measure import SLOTS, Side, measure, measure_damage, sign
from steerkit.searches.objectives import Objective
from steerkit.searches.rows import SweepRow
from steerkit.searches.states import States
from steerkit.statistics import Floats, cluster_mean

AT_ONCE = SLOTS
"""Candidates between two entries of the checkpoint."""


def measure_candidates(
    model: Model,
    interventions: Sequence[Intervention],
    objective: Objective,
    task: Side,
    guards: Sequence[Guard],
    *,
    seed: int,
    kept: Checkpoint,
    advance: Callable[[int], object],
) -> tuple[Floats, list[dict[str, Damage]]]:
    """(the objective `[candidate prompt]`, damage by guard of each candidate)."""
    values: list[list[float]] = []
    damages: list[dict[str, Damage]] = []
    for first in range(0, len(interventions), AT_ONCE):
        some = interventions[first : first + AT_ONCE]
        name = f"candidates {first} to {first + len(some) - 1}"
        if name not in kept.found:
            found = measure(model, some, objective, task.prompts).values
            hurt = {g.name: measure_damage(model, some, g, seed=seed) for g in guards}
            kept.keep(
                name,
                {
                    "values": found.tolist(),
                    "damages": {g: [d.to_json() for d in each] for g, each in hurt.items()},
                },
            )
        entry = kept.found[name]
        values += entry["values"]
        damages += [
            {g: Damage.from_json(each[i]) for g, each in entry["damages"].items()}
            for i in range(len(some))
        ]
        advance(len(some))
    return np.array(values, dtype=np.float64), damages


def row_of(
    candidate: Candidate,
    intervention: Intervention,
    values: Floats,
    damages: Mapping[str, Damage],
    limits: Mapping[str, float],
    plain: Floats,
    task: Side,
    met: States,
    aim: Aim,
    unit: str,
) -> SweepRow:
    """A candidate with its intervals; `plain` are the unsteered values `[prompt]`."""
    change = sign(aim) * (values - plain)
    return SweepRow(
        direction=candidate.direction,
        intervention=intervention,
        operator=candidate.operator,
        reference=candidate.reference,
        positions=str(candidate.positions),
        strength=candidate.strength,
        value=cluster_mean(values, task.groups, unit=unit),
        effect=cluster_mean(change, task.groups, unit=unit),
        wrong_way=wrong_way(change, task.groups),
        damages=damages,
        size=met.size(intervention),
        allowed=all(damages[g].mean.value <= limit for g, limit in limits.items()),
    )

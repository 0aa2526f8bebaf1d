"""`verify`: a strength that a file records, measured again."""

import json

from steerkit.batch import Positions
from steerkit.calibrated import CalibratedStrength
from steerkit.direction import Direction
from steerkit.errors import MethodError
from steerkit.interventions.operator import OPERATORS, from_settings
from steerkit.protocols import Intervention, Model
from steerkit.searches.calibration.gauges import Statistic, read_all
from steerkit.searches.calibration.results import Verified
from steerkit.searches.calibration.setup import Prompts, gauge_maker, hash_of, parts, side_of
from steerkit.searches.candidates import Aim
from steerkit.searches.objectives import Objective
from steerkit.site import Site
from steerkit.statistics import Estimate


def verify(
    model: Model,
    direction: Direction,
    prompts: Prompts,
    *,
    objective: "str | Objective | None" = None,
    token_budget: int = 16_384,
) -> list[Verified]:
    """Measure every calibrated strength of a direction again.

    Args:
        model: the model it was taken on, on any engine.
        direction: with calibrations, as loaded from its file.
        prompts: the very prompts of the calibration, whose held-out part is then measured, or
            others, which are measured whole.
        objective: what effects were measured by, where some were.
        token_budget: padded tokens a forward pass.

    Raises:
        MethodError: a direction without calibrations; an operator that was a function and
            cannot be made again; an effect whose objective is not given.
        DirectionError: another model.
    """
    direction.check(model.info)
    if not direction.calibrations:
        raise MethodError(f"{direction} has no calibrated strength to verify; calibrate it first")
    same = hash_of(prompts)
    found = []
    for record in direction.calibrations:
        one = _rebuilt(direction, record)
        by_effect = record.statistic == "change"
        effect = None
        if by_effect:
            if objective is None:
                raise MethodError(
                    f"the strength was calibrated by its effect on '{record.quantity}'; pass "
                    "objective= to measure that again"
                )
            effect = (objective, record.goal)
        side = side_of(prompts, _aim(record.aim), by_effect)
        very_same = same == record.prompts_sha256
        if very_same:
            side = parts(side, record.fraction, seed=record.seed)[1]
        statistic: Statistic = "p95" if record.statistic == "p95" else "mean"
        make = gauge_maker(
            model,
            [direction],
            prompts,
            record.goal,
            effect,
            statistic,
            _aim(record.aim),
            record.max_new_tokens,
            token_budget,
        )
        gauge = make(side)
        measured = gauge.estimate(read_all(gauge, [one])[0], seed=record.seed)
        found.append(Verified(record, measured, very_same, _agrees(record, measured, very_same)))
    return found


def _aim(text: str) -> Aim:
    return "reduce" if text == "reduce" else "induce"


def _rebuilt(direction: Direction, record: CalibratedStrength) -> Intervention:
    if record.operator not in OPERATORS.names():
        raise MethodError(
            f"the strength belongs to '{record.operator}', which is no registered operator "
            f"({', '.join(OPERATORS.names())}) and cannot be made again from a file"
        )
    return from_settings(
        record.operator,
        [direction],
        record.settings,
        strength=record.strength,
        positions=_positions(record.positions),
        sites=[Site.parse(s) for s in record.sites],
    )


def _positions(text: str) -> Positions:
    """The inverse of `str(positions)`."""
    if text.startswith("indices"):
        return Positions.of(json.loads(text.removeprefix("indices")))
    return Positions.of(text)


def _agrees(record: CalibratedStrength, measured: Estimate, very_same: bool) -> bool:
    was = record.achieved
    if very_same:
        return bool(abs(measured.value - was.value) <= 0.05 * max(abs(was.value), 1e-6))
    return bool(measured.low <= was.high and was.low <= measured.high)

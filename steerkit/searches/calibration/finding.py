"""`calibrate`: the strength that spends a given KL budget, or reaches a given effect.

Strengths of different layers and operators mean different things; at equal damage (or equal
effect) they can be compared. All directions are measured together: every round is one table
of programs, a slot for each strength that some direction wants to know about.
"""

import platform
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from steerkit.batch import Positions
from steerkit.calibrated import CalibratedStrength
from steerkit.direction import Direction
from steerkit.errors import DirectionError, MethodError
from steerkit.protocols import Completion, Model
from steerkit.searches.calibration.gauges import Gauge, KLGauge, Statistic, read_all
from steerkit.searches.calibration.results import Calibration, Calibrations
from steerkit.searches.calibration.roots import Hunt
from steerkit.searches.calibration.setup import (
    Effect,
    Prompts,
    every_dial,
    gauge_maker,
    hash_of,
    parts,
    side_of,
)
from steerkit.searches.candidates import AIMS, Aim, Factory
from steerkit.searches.measure import Side
from steerkit.statistics import Estimate, group_bootstrap


def calibrate(
    model: Model,
    directions: Direction | Sequence[Direction],
    prompts: Prompts,
    *,
    said: Sequence[Completion] | None = None,
    kl: float = 0.1,
    effect: Effect | None = None,
    statistic: Statistic = "mean",
    intervene: "str | Factory | Sequence[str | Factory]" = "add",
    aim: Aim = "induce",
    positions: Positions | str = "all",
    reference: str = "zero",
    at_most: float | None = None,
    tolerance: float = 0.01,
    fraction: float = 0.5,
    max_new_tokens: int = 16,
    n_resamples: int = 200,
    token_budget: int = 16_384,
    seed: int = 0,
    progress: bool = True,
) -> Calibrations:
    """Find for every direction and operator the strength that spends a budget or has an effect.

    The prompts are split by group. On the first part strengths are found; on the second, which
    had no part in that, what they spend is measured, with an interval. The curve is scanned on
    a coarse grid and its smallest crossing is closed in on; a second crossing between two
    strengths of the grid would go unseen.

    Args:
        model: plain, or steered by `with_` (calibrated interventions then come on top, and
            damage counts from there).
        directions: taken on this model.
        prompts: those whose answers are to be kept (for a KL), or changed (for an effect). Of
            a contrast, the aim says which side that is.
        said: the plain model's own answers to them, in order, where they are known already;
            they are what a KL is taken on.
        kl: budget of KL(plain || steered) in nats a token, teacher-forced on the plain
            model's own answers.
        effect: instead of a budget: an objective (or its name) and the change of it, in the
            aim's sense, that is wanted.
        statistic: of the KL: `mean`, or `p95` over all answer tokens.
        intervene: operators: classes, registered names, or factories
            `(direction, positions=, strength=) -> intervention`.
        aim: `induce` adds along the direction, `reduce` against it.
        positions: the tokens to steer.
        reference: where operators that have a reference point move to.
        at_most: the largest strength; by default 64 for additions and factories, and 1, the
            whole way, for operators that go a fraction of one.
        tolerance: relative, of what is spent on the first part of the prompts.
        fraction: the part of the groups that strengths are found on.
        max_new_tokens: of the plain model's answers.
        n_resamples: bootstrap resamples of each strength's interval; 0 for none.
        token_budget: padded tokens a forward pass.
        seed: of the split and of intervals.
        progress: show a bar on stderr.

    Raises:
        DirectionError: no directions, or one of another model.
        MethodError: a budget that is no positive number, an unknown aim, statistic, objective.
        PromptError: no prompts, or too few groups to hold some out.
        ActivationError: a strength at which the model's logits are not numbers; names it.

    Source: root finding to an equal per-token KL is how steering-lite compares its methods;
    here both are measured on disjoint prompts, and all directions at once.
    """
    _check(aim, statistic, kl, effect, fraction, tolerance)
    listed = [directions] if isinstance(directions, Direction) else list(directions)
    if not listed:
        raise DirectionError("there are no directions to calibrate; extract some first")
    for direction in listed:
        direction.check(model.info)
    dials = every_dial(listed, intervene, aim, Positions.of(positions), reference, at_most)
    found, held = parts(side_of(prompts, aim, effect is not None), fraction, seed=seed)
    make = gauge_maker(
        model,
        listed,
        prompts,
        kl,
        effect,
        statistic,
        aim,
        max_new_tokens,
        token_budget,
        said,
    )
    gauge = make(found)
    goal = kl if effect is None else float(effect[1])
    hunts = [_hunt(goal, d.limit, effect is not None, tolerance) for d in dials]
    readings: list[dict[float, Any]] = [{} for _ in dials]
    rounds = measured = 0

    from tqdm.auto import tqdm

    with tqdm(desc="calibrate", unit="program", disable=not progress) as bar:
        while asked := [(i, s) for i, hunt in enumerate(hunts) for s in hunt.ask()]:
            read = read_all(gauge, [dials[i].at(s) for i, s in asked])
            for (i, s), reading in zip(asked, read, strict=True):
                readings[i][s] = reading
            for i in dict(asked):
                new = {s: gauge.value(readings[i][s]) for j, s in asked if j == i}
                hunts[i].tell(new)
            rounds, measured = rounds + 1, measured + len(asked)
            bar.update(len(asked))
        roots = [hunt.root() for hunt in hunts]
        last = make(held)
        final = read_all(last, [d.at(r.strength) for d, r in zip(dials, roots, strict=True)])
    common: dict[str, Any] = {
        "quantity": gauge.quantity,
        "statistic": gauge.statistic,
        "unit": gauge.unit,
        "goal": goal,
        "aim": aim,
        "prompts_sha256": hash_of(prompts),
        "fraction": fraction,
        "seed": seed,
        "max_new_tokens": max_new_tokens,
    }
    items = []
    for dial, hunt, root, told, reading in zip(dials, hunts, roots, readings, final, strict=True):
        one = dial.at(root.strength)
        record = CalibratedStrength(
            strength=dial.sign * root.strength,
            operator=dial.operation.name,
            settings=dict(getattr(one, "settings", {})),
            positions=str(dial.positions),
            sites=tuple(str(s) for s in one.sites),
            achieved=last.estimate(reading, seed=seed),
            status=root.status,
            **common,
        )
        earlier = (r for r in dial.direction.calibrations if _question(r) != _question(record))
        direction = replace(dial.direction, calibrations=(*earlier, record))
        items.append(
            Calibration(
                direction,
                dial.at(root.strength, direction),
                record,
                root,
                _interval(gauge, hunt, told, n_resamples, seed) if root.met else _none(),
                last.on_p95().value(reading) if isinstance(last, KLGauge) else float("nan"),
                tuple(sorted((dial.sign * s, v) for s, v in hunt.points.items())),
            )
        )
    about = _provenance(model, common["prompts_sha256"], found, held, seed)
    return Calibrations(tuple(items), rounds, measured, about)


def _check(
    aim: str, statistic: str, kl: float, effect: Effect | None, fraction: float, tolerance: float
) -> None:
    from steerkit.registry import suggest

    if aim not in AIMS:
        raise MethodError(f"no aim named '{aim}'; {suggest(str(aim), AIMS)}")
    if statistic not in ("mean", "p95"):
        known = ("mean", "p95")
        raise MethodError(f"no statistic named '{statistic}'; {suggest(str(statistic), known)}")
    if effect is None and not kl > 0:
        raise MethodError(f"the KL budget is a positive number of nats a token; got {kl}")
    if effect is not None and not effect[1] > 0:
        raise MethodError(
            f"the effect to reach is a positive change in the aim's sense; got {effect[1]}. "
            "To lower the objective say aim='reduce'"
        )
    if not 0 < fraction < 1 or not 0 < tolerance < 1:
        raise MethodError(
            f"fraction and tolerance lie between 0 and 1; got {fraction} and {tolerance}"
        )


def _hunt(goal: float, limit: float, target: bool, tolerance: float) -> Hunt:
    """A KL is compared by ratio and kept below its budget; an effect is reached or passed."""
    if target:
        return Hunt(goal, limit, log=False, below=False, tolerance=tolerance, narrow=0.01)
    return Hunt(goal, limit, tolerance=tolerance)


def _interval(
    gauge: Gauge, hunt: Hunt, readings: dict[float, Any], n_resamples: int, seed: int
) -> Estimate:
    """Of the smallest root, read off curves of resampled groups between measured strengths."""
    strengths = sorted(readings)

    def root(rows: Any) -> float:
        before = (0.0, 0.0)
        for s in strengths:
            value = gauge.value(readings[s], rows)
            if value >= hunt.goal:
                return _between(before, (s, value), hunt)
            before = (s, value)
        return hunt.limit  # not reached by these groups

    return group_bootstrap(root, gauge.groups, n_resamples=n_resamples, seed=seed, unit="strength")


def _between(a: tuple[float, float], b: tuple[float, float], hunt: Hunt) -> float:
    """Where a straight line between two points meets the goal, on the hunt's own axes."""
    if a[0] == 0:
        return b[0] * (float(np.sqrt(hunt.goal / b[1])) if hunt.log else hunt.goal / b[1])
    low, high, goal = a[1], b[1], hunt.goal
    if hunt.log:
        low, high, goal = (float(np.log(max(v, 1e-12))) for v in (low, high, goal))
    share = (goal - low) / (high - low)
    return float(np.exp(np.log(a[0]) + share * np.log(b[0] / a[0])))


def _question(record: CalibratedStrength) -> tuple[Any, ...]:
    """What a record answers: a new answer takes the place of the old one."""
    r = record
    how = (r.operator, dict(r.settings), r.positions, r.sites, r.aim)
    return (*how, r.quantity, r.statistic, r.goal, r.prompts_sha256)


def _none() -> Estimate:
    nan = float("nan")
    return Estimate(nan, nan, nan, 0, "strength")


def _provenance(model: Model, sha256: str, found: Side, held: Side, seed: int) -> dict[str, Any]:
    import torch

    from steerkit import __version__

    return {
        "model": model.info.name,
        "fingerprint": model.info.fingerprint,
        "prompts": sha256,
        "fitted_on": len(found.prompts),
        "reported_on": len(held.prompts),
        "seed": seed,
        "steerkit": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }

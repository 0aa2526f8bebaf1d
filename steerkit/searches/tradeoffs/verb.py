"""The trade-off of steering: what it gains on one behaviour, and what it costs elsewhere.

The claim under test (arXiv:2401.16332) is about shapes: near zero the behaviour moves linearly
with strength, and helpfulness is lost with its square, so that small strengths pay. Exponents
are fitted, not assumed. A random direction of the same norm should lose helpfulness in the
same way, and should not move the behaviour.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from steerkit.batch import Positions
from steerkit.direction import Direction
from steerkit.errors import InterventionError, PromptError
from steerkit.interventions.add import Add
from steerkit.prompts import Prompt, groups_of
from steerkit.protocols import Model
from steerkit.searches.measure import measure
from steerkit.searches.nulls import NullDraws, Shape, random_directions
from steerkit.searches.objectives import Objective
from steerkit.searches.states import states
from steerkit.searches.tradeoffs.fits import CurveFits, fit_curve, predicted
from steerkit.searches.tradeoffs.levels import LevelFit, fit_level
from steerkit.searches.tradeoffs.objectives import OwnAnswer
from steerkit.searches.tradeoffs.result import Tradeoff
from steerkit.statistics import Estimate, Floats, cluster_mean, percentiles

STRENGTHS = (-2.0, -1.5, -1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


def tradeoff(
    model: Model,
    direction: Direction,
    behaviour_prompts: Sequence[Prompt | str],
    helpful_prompts: Sequence[Prompt | str],
    *,
    behaviour: Objective,
    helpfulness: Objective | None = None,
    strengths: Sequence[float] = STRENGTHS,
    positions: Positions | str = "all",
    near: float | tuple[float, float] | None = None,
    exchange: float = 1.0,
    n_random: int = 9,
    shape: Shape = "isotropic",
    n_resamples: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> Tradeoff:
    """Measure gain and loss over a grid of strengths, item by item, and fit their shapes.

    Use a direction that was extracted on other prompts than these.

    Args:
        model: plain or steered.
        direction: added at its site, in multiples of its scale.
        behaviour_prompts: on which the behaviour is measured.
        helpful_prompts: harmless ones, with right answers where `helpfulness` is the default.
        behaviour: larger means more of what the direction points to, such as `LogOdds` or
            `Balance` of two answers.
        helpfulness: larger is better; by default the probability of each prompt's own answer.
        strengths: 0 is put in.
        positions: the tokens to steer.
        near: fit powers only up to this strength, for both or (gain, loss); by default all.
        exchange: what a unit of lost helpfulness counts for, in units of gain.
        n_random: random directions of equal norm; 0 for none.
        shape: how they are drawn.
        n_resamples: of groups of items.
        seed: of resamples, folds and random directions.
        progress: show a bar on stderr.

    Raises:
        PromptError: no prompts on one side.
        InterventionError: strengths that are not finite.
        MethodError: too few strengths near zero, or items of a single group.

    Source: arXiv:2401.16332.
    """
    direction.check(model.info)
    x = np.array(sorted({0.0, *(float(s) for s in strengths)}))
    if not np.isfinite(x).all():
        raise InterventionError(f"strengths are finite numbers; got {list(strengths)}")
    sides = [[Prompt.of(p) for p in side] for side in (behaviour_prompts, helpful_prompts)]
    if not all(sides):
        raise PromptError(
            f"a trade-off needs prompts of both kinds; got {len(sides[0])} for the behaviour and "
            f"{len(sides[1])} for helpfulness"
        )
    groups = [groups_of(side) for side in sides]
    objectives = (behaviour, helpfulness or OwnAnswer())
    drawn: list[Direction] = []
    if n_random:
        h = states(model, model.tokenize(sides[1]), [direction.site]).streams[direction.site]
        drawn = random_directions(
            direction, h.double(), h.double(), n_random, shape=shape, seed=seed + 1
        )

    from tqdm.auto import tqdm

    with tqdm(
        total=2 * (len(x) - 1) * (1 + len(drawn)), desc="trade-off", disable=not progress
    ) as bar:
        levels = [
            _levels(model, [direction, *drawn], x, target, side, positions, bar.update)
            for target, side in zip(objectives, sides, strict=True)
        ]
    at_zero = int(np.flatnonzero(x == 0)[0])
    gains, losses = (
        side * (level - level[:, at_zero : at_zero + 1])
        for side, level in zip((1.0, -1.0), levels, strict=True)
    )
    limits = near if isinstance(near, tuple) else (near, near)
    common: dict[str, Any] = {"n_resamples": n_resamples, "seed": seed}
    gain = fit_curve(
        x, gains[0], groups[0], parity="odd", near=limits[0], unit=behaviour.unit, **common
    )
    loss = fit_curve(
        x, losses[0], groups[1], parity="even", near=limits[1], unit=objectives[1].unit, **common
    )
    random_loss = slope = None
    if drawn:
        random_loss = fit_curve(
            x,
            losses[1:].mean(0),
            groups[1],
            parity="even",
            near=limits[1],
            unit=objectives[1].unit,
            **common,
        )
        slopes = [abs(_slope(x, g, gain.near)) for g in gains]
        slope = NullDraws(f"{shape} directions, |slope|", slopes[0], tuple(slopes[1:]))
    most = min(float(x.max()), gain.near, loss.near)
    best, edge = _optimum(gain, loss, most, exchange, len(set(groups[0])))
    return Tradeoff(
        strengths=tuple(x.tolist()),
        behaviour=_means(levels[0][0], groups[0], behaviour.unit, seed),
        helpfulness=_means(levels[1][0], groups[1], objectives[1].unit, seed),
        behaviour_unit=behaviour.unit,
        helpfulness_unit=objectives[1].unit,
        gain=gain,
        loss=loss,
        tanh=_level(x, levels[0][0], groups[0], "tanh", seed),
        hill=_level(x, levels[1][0], groups[1], "hill", seed),
        optimum=best,
        at_edge=edge,
        exchange=exchange,
        random_loss=random_loss,
        random_slope=slope,
        direction=str(direction),
        positions=str(Positions.of(positions)),
    )


def _levels(
    model: Model,
    directions: Sequence[Direction],
    x: Floats,
    objective: Objective,
    prompts: Sequence[Prompt],
    positions: Positions | str,
    advance: Callable[[int], object],
) -> Floats:
    """The objective, `[direction strength item]`."""
    live = [float(s) for s in x if s]
    adds = [Add(d, strength=s, positions=positions) for d in directions for s in live]
    found = measure(model, adds, objective, prompts, advance=advance).values
    plain = objective.score(model, prompts).values[0]
    out = np.empty((len(directions), len(x), len(prompts)))
    out[:, x == 0] = plain
    out[:, x != 0] = found.reshape(len(directions), len(live), -1)
    return out


def _means(values: Floats, groups: Sequence[str], unit: str, seed: int) -> tuple[Estimate, ...]:
    return tuple(cluster_mean(row, groups, seed=seed, unit=unit) for row in values)


def _level(
    x: Floats, values: Floats, groups: Sequence[str], form: Literal["tanh", "hill"], seed: int
) -> LevelFit | None:
    """The theory's curve, where the level is one that it speaks of."""
    low = -1.0 if form == "tanh" else 0.0
    whole = values[:, ~np.isnan(values).any(0)]
    if whole.size == 0 or whole.min() < low or whole.max() > 1:
        return None
    return fit_level(x, values, groups, form, seed=seed)


def _slope(x: Floats, change: Floats, near: float) -> float:
    """Least-squares slope through zero of the mean change, near zero."""
    close = np.abs(x) <= near
    mean = np.nanmean(change, axis=1)
    return float(x[close] @ mean[close] / (x[close] @ x[close]))


def _optimum(
    gain: CurveFits, loss: CurveFits, most: float, exchange: float, n_groups: int
) -> tuple[Estimate, float]:
    """The strength of the largest net gain, and how often that is `most`."""
    nan = float("nan")
    if most <= 0:
        return Estimate(nan, nan, nan, n_groups, "strength"), 0.0
    grid = np.linspace(0, most, 401)

    def best(a: Sequence[float], b: Sequence[float]) -> float:
        net = predicted("power", a, grid, "odd") - exchange * predicted("power", b, grid, "even")
        return float(grid[int(net.argmax())])

    draws = np.array([best(a, b) for a, b in zip(gain.draws, loss.draws, strict=True)])
    value = best(
        *[[p.value for p in side.fit("power").parameters.values()] for side in (gain, loss)]
    )
    low, high = percentiles(draws, n_groups)
    return Estimate(value, low, high, n_groups, "strength"), float((draws >= most).mean())

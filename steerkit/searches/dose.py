"""Dose response: how log-odds of two kinds of answer move with strength, beside random vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from steerkit.batch import Positions
from steerkit.direction import Direction
from steerkit.errors import InterventionError, MethodError
from steerkit.interventions import Add
from steerkit.prompts import Prompt, groups_of
from steerkit.protocols import Model
from steerkit.searches.measure import measure
from steerkit.searches.nulls import NullDraws, Shape, random_directions
from steerkit.searches.objectives import LogOdds
from steerkit.searches.states import states
from steerkit.statistics import Estimate, Floats, cluster_mean, group_bootstrap


@dataclass(frozen=True)
class DoseResponse:
    """Log-odds at each strength of an addition, and its trend beside random directions.

    Attributes:
        strengths: in multiples of the direction's scale, ascending; 0 is the plain model.
        log_odds: mean over prompts of log p(positive answer) - log p(negative answer), nats,
            with a group-bootstrap interval.
        slope: least-squares slope of the change against strength, nats per class gap.
        spearman: rank correlation of strength and mean log-odds; 1 is monotone.
        null: |slope| of the direction beside |slope| of random ones of equal size.
        random: `[random direction][strength]`, mean change from the plain model, nats.
        direction: what was added, in words.
        positions: at which tokens.
    """

    strengths: tuple[float, ...]
    log_odds: tuple[Estimate, ...]
    slope: Estimate
    spearman: float
    null: NullDraws
    random: tuple[tuple[float, ...], ...]
    direction: str
    positions: str

    @property
    def change(self) -> tuple[float, ...]:
        """Mean change from the plain model at each strength, nats."""
        plain = self.log_odds[self.strengths.index(0.0)].value
        return tuple(e.value - plain for e in self.log_odds)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "strengths": list(self.strengths),
            "log_odds": [e.to_json() for e in self.log_odds],
            "slope": self.slope.to_json(),
            "spearman": self.spearman,
            "null": self.null.to_json(),
            "random": [list(row) for row in self.random],
            "direction": self.direction,
            "positions": self.positions,
        }

    def __repr__(self) -> str:
        return f"DoseResponse({self})"

    def __str__(self) -> str:
        n = self.null.null
        verdict = "exceeds all" if self.null.exceeds_all else "does not exceed all"
        return (
            f"dose response of {self.direction} ({self.positions}): slope {self.slope} nats per "
            f"class gap, rank correlation {self.spearman:.2f}; {verdict} of {n.n} random "
            f"directions (max |slope| {n.maximum:.3g}, p = {n.p:.3g})"
        )


def dose_response(
    model: Model,
    direction: Direction,
    prompts: Sequence[Prompt | str],
    positive_answers: Sequence[str],
    negative_answers: Sequence[str],
    *,
    strengths: Sequence[float] = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0),
    positions: Positions | str = "all",
    n_random: int = 99,
    shape: Shape = "isotropic",
    token_budget: int = 16_384,
    seed: int = 0,
) -> DoseResponse:
    """Add a direction at several strengths and score two kinds of answer after each prompt.

    Answers are teacher-forced, so nothing is generated and nothing has to be judged. Random
    directions are added at the same size, |strength| x scale, at every strength. An addition
    along a random direction may move log-odds either way, so slopes compare by size.

    Args:
        model: plain or steered.
        direction: what to add, at its own site.
        prompts: what the answers follow.
        positive_answers: answers that show the concept; the mean over them is taken.
        negative_answers: answers that show its opposite.
        strengths: at least three, in multiples of the direction's scale; 0 is put in.
        positions: the tokens to steer.
        n_random: random directions.
        shape: how they are drawn (see `searches.nulls`).
        token_budget: padded tokens a forward pass.
        seed: of intervals and random directions.

    Raises:
        MethodError: no prompts or answers, or fewer than three strengths.
        InterventionError: strengths that are not finite.
    """
    doses = _doses(strengths)
    asked = [Prompt.of(p) for p in prompts]
    if not asked or not positive_answers or not negative_answers:
        raise MethodError(
            f"a dose response needs prompts and answers of both kinds; got {len(asked)} prompts, "
            f"{len(positive_answers)} positive and {len(negative_answers)} negative answers"
        )
    odds = LogOdds(tuple(positive_answers), tuple(negative_answers), token_budget=token_budget)
    groups = groups_of(asked)
    plain = odds.score(model, asked).values[0]

    def curves(vectors: Sequence[Direction]) -> Floats:
        """Log-odds `[direction strength prompt]`."""
        live = [dose for dose in doses if dose]
        adds = [Add(v, strength=s, positions=positions) for v in vectors for s in live]
        found = measure(model, adds, odds, asked).values.reshape(len(vectors), len(live), -1)
        zero = np.broadcast_to(plain, (len(vectors), 1, len(plain)))
        return np.concatenate([found, zero], axis=1)[:, np.argsort([*live, 0.0])]

    direction.check(model.info)
    real = curves([direction])[0]
    x = np.array(doses)
    slope = group_bootstrap(
        lambda rows: _slope(x, real[:, rows].mean(1)), groups, seed=seed, unit="nats/gap"
    )
    drawn: list[Direction] = []
    if n_random:
        site = direction.site
        h = states(model, model.tokenize(asked), [site]).streams[site].double()
        drawn = random_directions(direction, h, h, n_random, shape=shape, seed=seed + 1)
    fake = curves(drawn).mean(2) if drawn else np.empty((0, len(doses)))
    draws = tuple(abs(_slope(x, curve)) for curve in fake)
    from scipy.stats import spearmanr

    return DoseResponse(
        strengths=doses,
        log_odds=tuple(cluster_mean(v, groups, seed=seed, unit="nats") for v in real),
        slope=slope,
        spearman=float(spearmanr(x, real.mean(1)).statistic),
        null=NullDraws(f"{shape} directions, |slope|", abs(slope.value), draws, direction.scale),
        random=tuple(tuple((curve - plain.mean()).tolist()) for curve in fake),
        direction=str(direction),
        positions=str(Positions.of(positions)),
    )


def _doses(strengths: Sequence[float]) -> tuple[float, ...]:
    """Ascending and distinct, 0 among them."""
    values = torch.tensor([float(s) for s in strengths], dtype=torch.float64)
    if not bool(torch.isfinite(values).all()):
        raise InterventionError(f"strengths are finite numbers; got {list(strengths)}")
    doses = tuple(sorted({0.0, *values.tolist()}))
    if len(doses) < 3:
        raise MethodError(
            f"a trend needs at least three strengths (0 is one of them); got {list(strengths)}"
        )
    return doses


def _slope(x: Floats, y: Floats) -> float:
    """Least-squares slope."""
    centred = x - x.mean()
    return float(centred @ y / (centred @ centred))

"""What a calibration turns and what it reads: dials, parts of the prompts, gauges."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from steerkit.batch import Positions, Tokenized
from steerkit.direction import Direction
from steerkit.errors import MethodError, PromptError
from steerkit.prompts import Contrast, Prompt, groups_of
from steerkit.protocols import Completion, Intervention, Model
from steerkit.scoring import with_own_answers
from steerkit.searches.calibration.gauges import EffectGauge, Gauge, KLGauge, Statistic
from steerkit.searches.candidates import Aim, Factory, Operation, operation
from steerkit.searches.guards import KLGuard
from steerkit.searches.measure import Side, sides, sign
from steerkit.searches.naming import make_objective
from steerkit.searches.objectives import Objective, Projection, Refusal

ADDITIVE = ("add", "add_keeping_norm")
"""Operators whose strength has a sign and no natural end."""
AT_MOST = 64.0
Prompts = Contrast | Sequence[Prompt | str]
Effect = tuple[str | Objective, float]


@dataclass(frozen=True, eq=False)
class Dial:
    """A direction under an operator, with its strength left open."""

    direction: Direction
    operation: Operation
    reference: str
    positions: Positions
    sign: float
    limit: float

    def at(self, strength: float, direction: Direction | None = None) -> Intervention:
        """The intervention at a strength given without its sign."""
        (candidate,) = self.operation.candidates(
            direction or self.direction,
            (self.positions,),
            (self.reference,),
            (self.sign * strength,),
        )
        return candidate.intervention


def parts(side: Side, fraction: float, *, seed: int = 0) -> tuple[Side, Side]:
    """Two parts of the prompts that share no group; the first holds about `fraction` of them.

    Raises:
        PromptError: fewer than two groups.
    """
    names = sorted(set(side.groups))
    if len(names) < 2:
        raise PromptError(
            f"{len(side.prompts)} prompts in {len(names)} group cannot be split into a part to "
            "fit on and a part to report on; give prompts of at least two groups"
        )
    np.random.default_rng(seed).shuffle(names)
    sizes = {name: side.groups.count(name) for name in names}
    first: set[str] = set()
    for name in names[:-1]:
        taken = sum(sizes[n] for n in first)
        if not first or taken + sizes[name] / 2 <= fraction * len(side.prompts):
            first.add(name)
    split = [[i for i, g in enumerate(side.groups) if (g in first) == own] for own in (True, False)]
    return side.take(split[0]), side.take(split[1])


def every_dial(
    directions: Sequence[Direction],
    intervene: "str | Factory | Sequence[str | Factory]",
    aim: Aim,
    positions: Positions,
    reference: str,
    at_most: float | None,
) -> list[Dial]:
    """A dial for every direction and operator, in forward order of their sites."""
    if positions.rule == "mask":
        raise MethodError(
            "a strength is calibrated for a position rule, not for a token mask, which belongs "
            "to fixed prompts; use 'all', 'prompt', 'last_prompt' or 'generated'"
        )
    single = isinstance(intervene, str) or callable(intervene)
    operators: Any = (intervene,) if single else tuple(intervene)  # type: ignore[arg-type]
    if not operators:
        raise MethodError("no operators to calibrate; give at least one")
    operations = [operation(one, aim) for one in operators]
    found = []
    for direction in sorted(directions, key=lambda d: (d.site.order, d.method)):
        for op, given in zip(operations, operators, strict=True):
            additive = op.name in ADDITIVE
            fractional = not additive and (isinstance(given, type | str))
            limit = at_most or (1.0 if fractional else AT_MOST)
            point = reference if op.has_reference else ""
            found.append(
                Dial(direction, op, point, positions, sign(aim) if additive else 1.0, limit)
            )
    return found


def side_of(prompts: Prompts, aim: Aim, changed: bool) -> Side:
    """The prompts that are measured: of a contrast, the side to be changed or left alone."""
    if isinstance(prompts, Contrast):
        return sides(prompts, aim)[0 if changed else 1]
    asked = tuple(Prompt.of(p) for p in prompts)
    if not asked:
        raise PromptError("no prompts to calibrate on; give some whose answers matter")
    return Side(asked, groups_of(asked))


def gauge_maker(
    model: Model,
    directions: Sequence[Direction],
    prompts: Prompts,
    kl: float,
    effect: Effect | None,
    statistic: Statistic,
    aim: Aim,
    max_new_tokens: int,
    token_budget: int,
    said: Sequence[Completion] | None = None,
) -> Callable[[Side], Gauge]:
    """A maker of the gauge for either part of the prompts.

    Raises:
        MethodError: another number of answers in `said` than of prompts that a KL is taken on.
    """
    if effect is None:
        own = None if said is None else _own(side_of(prompts, aim, False), said)

        def by_kl(side: Side) -> Gauge:
            if own is not None:
                known = tuple(own[p] for p in side.prompts)
                return KLGauge(model, KLGuard(known, side.groups, kl, token_budget), statistic)
            guard = KLGuard.on(
                model,
                side.prompts,
                side.groups,
                limit=kl,
                max_new_tokens=max_new_tokens,
                token_budget=token_budget,
            )
            return KLGauge(model, guard, statistic)

        return by_kl
    target = _objective(effect[0], model, directions, prompts, max_new_tokens, token_budget)
    return lambda side: EffectGauge.on(model, target, side, sign(aim))


def _own(side: Side, said: Sequence[Completion]) -> dict[Prompt, Tokenized]:
    """Each prompt with the answer that was given to it, as tokens."""
    if len(said) != len(side.prompts):
        raise MethodError(
            f"{len(said)} answers were given for {len(side.prompts)} prompts; give the plain "
            "model's answer to each of them, in their order, or leave said= out"
        )
    return dict(zip(side.prompts, with_own_answers(said), strict=True))


def _objective(
    objective: str | Objective,
    model: Model,
    directions: Sequence[Direction],
    prompts: Prompts,
    max_new_tokens: int,
    token_budget: int,
) -> Objective:
    if not isinstance(objective, str):
        return objective
    if isinstance(prompts, Contrast):
        return make_objective(
            objective,
            model,
            directions,
            prompts,
            max_new_tokens=max_new_tokens,
            token_budget=token_budget,
        )
    if objective == "refusal":
        return Refusal(max_new_tokens, token_budget=token_budget)
    if objective == "projection":
        return Projection(max(directions, key=lambda d: d.site.order), token_budget)
    raise MethodError(
        f"the objective '{objective}' by name needs a Contrast of prompts; pass one, or an "
        "Objective such as LogOdds(positive=, negative=)"
    )


def hash_of(prompts: Prompts) -> str:
    """sha256 of all prompts given, before they are split."""
    if isinstance(prompts, Contrast):
        return prompts.sha256
    data = [asdict(Prompt.of(p)) for p in prompts]
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

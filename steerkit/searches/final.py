"""The last word on a choice: effect, damage and nulls on prompts that the search never saw."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from steerkit.prompts import Contrast
from steerkit.protocols import Model
from steerkit.scoring import with_own_answers
from steerkit.searches.candidates import Aim, Candidate
from steerkit.searches.guarding import fewer, guards_on
from steerkit.searches.measure import (
    Side,
    measure,
    measure_damage,
    measure_plain,
    sides,
    sign,
    spread,
    within,
)
from steerkit.searches.nulls import SHAPES, NullDraws, matched, overlap, random_directions
from steerkit.searches.objectives import Objective, Scores
from steerkit.searches.rows import Final, Transfer
from steerkit.searches.states import states
from steerkit.site import Site
from steerkit.statistics import Estimate, Floats, cluster_mean


def confirm(
    model: Model,
    choice: Candidate,
    contrast: Contrast,
    objective: Objective,
    *,
    aim: Aim,
    limits: Mapping[str, float],
    transfer: Mapping[str, Contrast],
    n_random: int,
    null_prompts: int,
    max_new_tokens: int,
    token_budget: int,
    seed: int,
    advance: Callable[[int], object] = lambda n: None,
) -> Final:
    """Measure a choice on a contrast that had no part in making it.

    Random directions run on the same prompts with the same operator, position rule and
    strength, resized to the same mean |delta h|, on at most `null_prompts` of the prompts, and
    the choice is compared with them on those. Disjoint data, so nothing to correct for.
    """
    task, other = sides(contrast, aim)
    plain = measure_plain(model, objective, task.prompts)
    steered = measure(model, [choice.intervention], objective, task.prompts, advance=advance)
    other_plain = measure_plain(model, objective, other.prompts)
    other_steered = measure(model, [choice.intervention], objective, other.prompts)
    change = sign(aim) * (steered.values[0] - plain.values[0])
    guards = guards_on(
        model, other, limits, max_new_tokens=max_new_tokens, token_budget=token_budget
    )
    damages = {
        g.name: measure_damage(model, [choice.intervention], g, seed=seed)[0] for g in guards
    }
    nulls: list[NullDraws] = []
    if n_random:
        some = spread(len(task.prompts), null_prompts, seed=seed)
        few = task.take(some).prompts
        few_guards = fewer(guards, null_prompts, seed=seed)
        said = model.generate(few, max_new_tokens=max_new_tokens, token_budget=token_budget)
        met = states(model, with_own_answers(said), [choice.direction.site])
        a, b = class_states(model, contrast, choice.direction.site)
        size = met.size(choice.intervention)
        for i, shape in enumerate(SHAPES):
            drawn = random_directions(
                choice.direction, a, b, n_random, shape=shape, seed=seed + 1 + i
            )
            same = matched(choice, drawn, size, met)
            found = measure(model, same, objective, few, advance=advance)
            kept = sum(within(model, same, few_guards)) if guards else None
            draws = sign(aim) * (found.values - plain.values[:, some]).mean(1) + 0.0  # no -0
            observed = float(change[some].mean())
            nulls.append(
                NullDraws(
                    shape,
                    observed,
                    tuple(draws.tolist()),
                    size,
                    overlap(drawn, choice.direction),
                    kept,
                )
            )

    def mean(values: Any, groups: Sequence[str]) -> Any:
        return cluster_mean(values, groups, seed=seed, unit=objective.unit)

    return Final(
        plain=mean(plain.values[0], task.groups),
        steered=mean(steered.values[0], task.groups),
        effect=mean(change, task.groups),
        wrong_way=wrong_way(change, task.groups),
        by_group={
            g: float(change[[i for i, one in enumerate(task.groups) if one == g]].mean())
            for g in dict.fromkeys(task.groups)
        },
        damages=damages,
        other_plain=mean(other_plain.values[0], other.groups),
        other_steered=mean(other_steered.values[0], other.groups),
        nulls=tuple(nulls),
        transfer=tuple(
            _transfer(name, model, choice, sides(further, aim)[0], objective, aim)
            for name, further in transfer.items()
        ),
        items=(
            *_items(aim, task.prompts, plain, steered),
            *_items("other", other.prompts, other_plain, other_steered),
        ),
    )


def wrong_way(change: Floats, groups: Sequence[str]) -> Estimate:
    """Share of prompts that moved against the aim, of changes in the aim's sense.

    A mean hides them: many published vectors move a third of their prompts the wrong way
    (Tan et al. 2024, arXiv:2407.12404).
    """
    return cluster_mean((change < 0).astype(np.float64), groups, unit="fraction")


def _transfer(
    name: str, model: Model, choice: Candidate, side: Side, objective: Objective, aim: Aim
) -> Transfer:
    plain = measure_plain(model, objective, side.prompts).values[0]
    steered = measure(model, [choice.intervention], objective, side.prompts).values[0]
    change = sign(aim) * (steered - plain)
    unit = objective.unit
    return Transfer(
        name,
        cluster_mean(plain, side.groups, unit=unit),
        cluster_mean(steered, side.groups, unit=unit),
        cluster_mean(change, side.groups, unit=unit),
        wrong_way(change, side.groups),
    )


def class_states(
    model: Model, contrast: Contrast, site: Site
) -> tuple[Float[Tensor, "prompt d_model"], Float[Tensor, "prompt d_model"]]:
    """Last-prompt-token states of the positive and of the negative class, float64."""
    a, b = (
        states(model, model.tokenize(list(side)), [site]).at_last_prompt(site)
        for side in (contrast.positive, contrast.negative)
    )
    return a, b


def _items(part: str, prompts: Sequence[Any], plain: Scores, steered: Scores) -> list[Any]:
    return [
        {
            "part": part,
            "prompt": p.text,
            "group": p.group,
            "plain": float(plain.values[0, i]),
            "steered": float(steered.values[0, i]),
            **(
                {"plain_answer": plain.outputs[0][i], "steered_answer": steered.outputs[0][i]}
                if plain.outputs
                else {}
            ),
        }
        for i, p in enumerate(prompts)
    ]

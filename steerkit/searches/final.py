"""The last word on a choice: effect, damage and nulls on prompts that the search never saw."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from steerkit.prompts import Contrast
from steerkit.protocols import Model
from steerkit.scoring import with_own_answers
from steerkit.searches.candidates import Aim, Candidate
from steerkit.searches.guards import KLGuard
from steerkit.searches.measure import measure, measure_damage, sides, sign, spread, within
from steerkit.searches.nulls import SHAPES, NullDraws, matched, overlap, random_directions
from steerkit.searches.objectives import Objective, Scores
from steerkit.searches.states import states
from steerkit.searches.sweep import Final
from steerkit.site import Site
from steerkit.statistics import cluster_mean


def confirm(
    model: Model,
    choice: Candidate,
    contrast: Contrast,
    objective: Objective,
    *,
    aim: Aim,
    guard: float | None,
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
    plain = objective.score(model, task.prompts)
    steered = measure(model, [choice.intervention], objective, task.prompts, advance=advance)
    other_plain = objective.score(model, other.prompts)
    other_steered = measure(model, [choice.intervention], objective, other.prompts)
    change = sign(aim) * (steered.values[0] - plain.values[0])
    damage = watched = None
    if guard is not None:
        watched = KLGuard.on(
            model,
            other.prompts,
            other.groups,
            limit=guard,
            max_new_tokens=max_new_tokens,
            token_budget=token_budget,
        )
        (damage,) = measure_damage(model, [choice.intervention], watched, seed=seed)
    nulls: list[NullDraws] = []
    if n_random:
        some = spread(len(task.prompts), null_prompts, seed=seed)
        few = task.take(some).prompts
        some_watched = watched and watched.only(spread(len(watched.items), null_prompts, seed=seed))
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
            kept = None if watched is None else sum(within(model, same, some_watched))
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
        guard=damage.mean if damage else None,
        guard_p95=damage.p95 if damage else float("nan"),
        other_plain=mean(other_plain.values[0], other.groups),
        other_steered=mean(other_steered.values[0], other.groups),
        nulls=tuple(nulls),
        items=(
            *_items(aim, task.prompts, plain, steered),
            *_items("other", other.prompts, other_plain, other_steered),
        ),
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

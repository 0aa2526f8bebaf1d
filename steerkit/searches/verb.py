"""The verb: try every candidate on held-out prompts, choose under a guard, confirm on the rest."""

import platform
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from steerkit.batch import Positions
from steerkit.direction import Direction
from steerkit.errors import MethodError
from steerkit.prompts import Contrast
from steerkit.protocols import Intervention, Model
from steerkit.registry import suggest
from steerkit.scoring import with_own_answers
from steerkit.searches.candidates import AIMS, Aim, Candidate, Factory, every_candidate
from steerkit.searches.final import class_states, confirm
from steerkit.searches.guards import Damage, KLGuard, check_guard
from steerkit.searches.measure import Side, measure, measure_damage, sides, sign, spread, within
from steerkit.searches.nulls import SHAPES, NullDraws, matched, random_directions
from steerkit.searches.objectives import Objective, Scores, make_objective
from steerkit.searches.states import States, states
from steerkit.searches.sweep import Final, Sweep, SweepRow
from steerkit.statistics import Floats, cluster_mean

FLOORS = ((39, 8), (19, 4))
"""(random searches, prompts of each) kept as a budget tightens; it never goes below the last."""


def search(
    model: Model,
    directions: Direction | Sequence[Direction],
    held_out: Contrast,
    *,
    intervene: "str | Factory | Sequence[str | Factory]" = "ablate",
    strengths: Sequence[float] | None = None,
    positions: Sequence[Positions | str] = ("all", "last_prompt"),
    references: Sequence[str] = ("zero", "negative_mean"),
    objective: str | Objective = "refusal",
    aim: Aim = "reduce",
    guard: str | None = "kl",
    guard_max: float = 0.1,
    n_random: int = 199,
    null_prompts: int = 16,
    null_budget: int = 6_000,
    fraction: float = 0.5,
    max_new_tokens: int = 16,
    token_budget: int = 16_384,
    seed: int = 0,
    progress: bool = True,
) -> Sweep:
    """Find direction, operator, position rule and strength, and what they do to unseen prompts.

    The held-out contrast is split by group into a selection and a confirmation part. Every
    candidate is scored on the same selection prompts; of those that meet the guard the one
    with the largest effect is chosen; the confirmation part gives the final estimate, its
    interval and its nulls. Random directions also pass through the whole search, and the
    best effect is compared with theirs (maximum against maxima).

    Args:
        model: plain, or steered by `with_` (candidates then come on top).
        directions: one or several at each site, taken on this model.
        held_out: prompts that had no part in making the directions.
        intervene: operators to try: classes, registered names, or factories
            `(direction, positions=, strength=) -> intervention`, or several of these.
        strengths: for every operator; by default 1, and five additions of the aim's sign.
        positions: position rules to try.
        references: reference points to try, for operators that have one.
        objective: `refusal`, `unanswered` (not the prompt's own answer), `log_odds`,
            `projection`, or an `Objective`.
        aim: `reduce` the objective on the positive prompts, or `induce` it on the negative.
        guard: `kl`: mean KL(plain || steered) per token on the other side's prompts, over
            the plain model's own answers; None for no guard.
        guard_max: its limit, in nats a token.
        n_random: random directions of each shape at the chosen candidate; 0 for no nulls.
        null_prompts: prompts on which random directions are measured, at most.
        null_budget: measured rows (direction x candidate x prompt) that random searches may
            cost: with a smaller one, fewer random searches (down to 19) on fewer prompts
            (down to 4); 0 for none.
            They are held to the guard like the real one, on as many prompts.
        fraction: share of the held-out groups that selection uses.
        max_new_tokens: length of generated answers.
        token_budget: padded tokens a forward pass.
        seed: every random choice follows from it.
        progress: one bar, to stderr.

    Raises:
        MethodError: an unknown objective, guard or aim.
        InterventionError: an unknown operator or rule, strengths not finite.
        DirectionError: no directions, or directions of another model.
        PromptError: too few groups to split.
    """
    if aim not in AIMS:
        raise MethodError(f"no aim named '{aim}'; {suggest(str(aim), AIMS)}")
    check_guard(guard, guard_max)
    listed = [directions] if isinstance(directions, Direction) else list(directions)
    for direction in listed:
        direction.check(model.info)
    tried = every_candidate(
        listed, intervene, aim=aim, strengths=strengths, positions=positions, references=references
    )
    selection, confirmation = held_out.split(fraction, seed=seed)
    target = make_objective(
        objective,
        model,
        listed,
        held_out,
        max_new_tokens=max_new_tokens,
        token_budget=token_budget,
    )
    task, other = sides(selection, aim)
    draws, few = _affordable(len(tried), n_random, null_prompts, null_budget, len(task.prompts))

    from tqdm.auto import tqdm

    steps = len(tried) * (1 + draws) + 1 + len(SHAPES) * n_random
    with tqdm(total=steps, desc="search", disable=not progress) as bar:
        plain = target.score(model, task.prompts)
        said = model.generate(
            task.prompts, max_new_tokens=max_new_tokens, token_budget=token_budget
        )
        met = states(model, with_own_answers(said), [c.direction.site for c in tried])
        interventions = [c.intervention for c in tried]
        scores = measure(model, interventions, target, task.prompts, advance=bar.update)
        damages: list[Damage | None] = [None] * len(tried)
        watched = None
        if guard is not None:
            watched = KLGuard.on(
                model,
                other.prompts,
                other.groups,
                limit=guard_max,
                max_new_tokens=max_new_tokens,
                token_budget=token_budget,
            )
            damages = [*measure_damage(model, interventions, watched, seed=seed)]
        rows = tuple(
            _row(candidate, intervention, values, damage, plain, task, met, aim, target, guard_max)
            for candidate, intervention, values, damage in zip(
                tried, interventions, scores.values, damages, strict=True
            )
        )
        sweep = Sweep(
            rows=rows,
            aim=aim,
            objective=target.name,
            unit=target.unit,
            plain=cluster_mean(plain.values[0], task.groups, seed=seed, unit=target.unit),
            guard_name=guard,
            guard_max=guard_max,
            searched=None,
            final=None,
            provenance=_provenance(model, held_out, selection, confirmation, seed),
        )
        if not sweep.found:
            return sweep
        searched = None
        if draws:
            some = spread(len(task.prompts), few, seed=seed)
            effects = sign(aim) * (scores.values - plain.values)[:, some].mean(1)
            observed = max(e for e, row in zip(effects, rows, strict=True) if row.allowed)
            searched = _random_searches(
                model,
                tried,
                rows,
                target,
                task.take(some),
                sign(aim) * plain.values[0, some],
                selection,
                met,
                aim=aim,
                guard=watched and watched.only(spread(len(watched.items), few, seed=seed)),
                observed=float(observed),
                n=draws,
                seed=seed + 10,
                advance=bar.update,
            )
        choice = tried[rows.index(sweep.best)]
        final: Final = confirm(
            model,
            choice,
            confirmation,
            target,
            aim=aim,
            guard=guard_max if guard is not None else None,
            n_random=n_random,
            null_prompts=null_prompts,
            max_new_tokens=max_new_tokens,
            token_budget=token_budget,
            seed=seed,
            advance=bar.update,
        )
    return replace(sweep, searched=searched, final=final)


def _affordable(
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


def _row(
    candidate: Candidate,
    intervention: Intervention,
    values: Floats,
    damage: Damage | None,
    plain: Scores,
    task: Side,
    met: States,
    aim: Aim,
    target: Objective,
    guard_max: float,
) -> SweepRow:
    change = sign(aim) * (values - plain.values[0])
    return SweepRow(
        direction=candidate.direction,
        intervention=intervention,
        operator=candidate.operator,
        reference=candidate.reference,
        positions=str(candidate.positions),
        strength=candidate.strength,
        value=cluster_mean(values, task.groups, unit=target.unit),
        effect=cluster_mean(change, task.groups, unit=target.unit),
        guard=damage.mean if damage else None,
        guard_p95=damage.p95 if damage else float("nan"),
        size=met.size(intervention),
        allowed=damage is None or damage.mean.value <= guard_max,
    )


def _random_searches(
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
    guard: KLGuard | None,
    observed: float,
    n: int,
    seed: int,
    advance: Any,
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
    for candidate, row in zip(tried, rows, strict=True):
        same = matched(candidate, drawn[id(candidate.direction)], row.size, met)
        found = measure(model, same, target, task.prompts)
        effects = (sign(aim) * found.values - plain).mean(1)
        # A random search that finds nothing within the guard has no effect at all.
        effects = np.where(within(model, same, guard), effects, 0.0)
        best = np.maximum(best, effects)
        advance(n)
    return NullDraws("search over random directions", observed, tuple(best.tolist()))


def _provenance(
    model: Model, held_out: Contrast, selection: Contrast, confirmation: Contrast, seed: int
) -> dict[str, Any]:
    import torch

    from steerkit import __version__

    return {
        "model": model.info.name,
        "fingerprint": model.info.fingerprint,
        "held_out": held_out.sha256,
        "selection": [len(selection.positive), len(selection.negative)],
        "confirmation": [len(confirmation.positive), len(confirmation.negative)],
        "seed": seed,
        "steerkit": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }

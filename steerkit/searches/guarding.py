"""From what a user asks to be guarded to guards on some prompts."""

from collections.abc import Mapping, Sequence

from steerkit.protocols import Model
from steerkit.searches.accuracy_guard import AccuracyGuard
from steerkit.searches.guards import LIMITS, Guard, KLGuard, PerplexityGuard, check_guard
from steerkit.searches.measure import Side, spread
from steerkit.searches.objectives import Unanswered


def read_limits(
    guard: str | Mapping[str, float] | Sequence[str] | None, guard_max: float | None
) -> dict[str, float]:
    """Largest mean damage by guard.

    Raises:
        MethodError: an unknown guard, or a limit that is not a positive number.
    """
    if guard is None:
        return {}
    if isinstance(guard, str):
        check_guard(guard, LIMITS.get(guard, 1.0) if guard_max is None else guard_max)
        return {guard: LIMITS[guard] if guard_max is None else guard_max}
    limits = dict(guard) if isinstance(guard, Mapping) else {g: LIMITS.get(g, 1.0) for g in guard}
    for name, limit in limits.items():
        check_guard(name, limit)
    return limits


def guards_on(
    model: Model,
    side: Side,
    limits: Mapping[str, float],
    *,
    max_new_tokens: int,
    token_budget: int,
) -> tuple[Guard, ...]:
    """The guards on these prompts; what they need of the plain model is measured now.

    Raises:
        MethodError: a guard on right answers where prompts have none.
    """
    made: list[Guard] = []
    for name, limit in limits.items():
        if name == "accuracy":
            measured = Unanswered(max_new_tokens, token_budget)
            made.append(AccuracyGuard(side.prompts, side.groups, limit, measured))
            continue
        kind = KLGuard if name == "kl" else PerplexityGuard
        made.append(
            kind.on(
                model,
                side.prompts,
                side.groups,
                limit=limit,
                max_new_tokens=max_new_tokens,
                token_budget=token_budget,
            )
        )
    return tuple(made)


def fewer(guards: Sequence[Guard], at_most: int, *, seed: int) -> tuple[Guard, ...]:
    """The guards on at most so many of their prompts, the same ones each time."""
    return tuple(g.only(spread(len(g.groups), at_most, seed=seed)) for g in guards)

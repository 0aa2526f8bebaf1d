"""One sentence computed from the numbers, and the words of a single number."""

import math
from collections.abc import Sequence

from steerkit.audits.arms import ArmInfo
from steerkit.audits.scores import Score
from steerkit.statistics import Estimate


def shown(value: float, unit: str) -> str:
    """A number as people read it: percent for fractions, three digits otherwise."""
    if math.isnan(value):
        return "n/a"
    if unit == "fraction":
        return f"{100 * value:.0f}%" if abs(100 * value) in (0, 100) else f"{100 * value:.1f}%"
    return f"{value:.3g}"


def interval(estimate: Estimate, unit: str) -> str:
    """`value [low, high]`."""
    low, high = shown(estimate.low, unit), shown(estimate.high, unit)
    return f"{shown(estimate.value, unit)} [{low}, {high}]"


def change(estimate: Estimate, unit: str) -> str:
    """A signed difference with its interval, in points for fractions."""
    if unit == "fraction":
        value, low, high = (100 * x for x in (estimate.value, estimate.low, estimate.high))
        return f"{value:+.1f} points [{low:+.1f}, {high:+.1f}]"
    return f"{estimate.value:+.3g} [{estimate.low:+.3g}, {estimate.high:+.3g}]"


def find(scores: Sequence[Score], check: str, side: str, arm: str) -> Score | None:
    """The score of a check, side and arm, or None where there is none."""
    return next((s for s in scores if (s.check, s.side, s.arm) == (check, side, arm)), None)


def verdict(scores: Sequence[Score], arms: Sequence[ArmInfo], target: str, on: str) -> str:
    """What steering did to the target on one side, at what cost, and what prompting did."""
    plain = next((a.name for a in arms if a.role == "plain"), "plain")
    steered = next((a.name for a in arms if a.role == "steered"), "steered")
    after = find(scores, target, on, steered)
    before = find(scores, target, on, plain)
    if after is None or before is None or after.difference is None:
        return f"Inconclusive: {target} was not measured on both the plain and the steered model."
    words = [_effect(target, on, before, after)]
    cost = _cost(scores, target, on, steered)
    if cost:
        words.append(cost)
    prompted = _prompted(scores, target, on, arms)
    if prompted:
        words.append(prompted)
    return "; ".join(words) + "."


def _effect(target: str, side: str, before: Score, after: Score) -> str:
    assert after.difference is not None
    d, unit = after.difference, after.unit
    numbers = (
        f"{shown(before.estimate.value, unit)} to {shown(after.estimate.value, unit)} "
        f"({change(d.estimate, unit)}, {after.prompts} prompts in {d.estimate.n} groups)"
    )
    if d.direction == "inconclusive":
        return (
            f"Inconclusive: steering took {target} on {side} prompts from {numbers}; a change of "
            f"{_size(d.detectable, unit)} or more would have been found with 80% power"
        )
    verb = "lowered" if d.direction == "lower" else "raised"
    return f"Steering {verb} {target} on {side} prompts from {numbers}"


def _cost(scores: Sequence[Score], target: str, on: str, steered: str) -> str:
    parts = []
    kl = find(scores, "kl", "negative", steered)
    if kl is not None:
        tail = f" (95th percentile {shown(kl.q95.value, '')})" if kl.q95 else ""
        parts.append(f"KL {shown(kl.estimate.value, '')} nats/token{tail}")
    for check, side in (
        ("correct", on),
        ("correct", _other(on)),
        (target, _other(on)),
        ("degeneration", on),
    ):
        found = find(scores, check, side, steered)
        if found is None or found.difference is None:
            continue
        d = found.difference
        note = f"{check} on {side} prompts {change(d.estimate, found.unit)}"
        parts.append(note + (" (inconclusive)" if d.direction == "inconclusive" else ""))
    return "beside it: " + ", ".join(parts) if parts else ""


def _prompted(scores: Sequence[Score], target: str, on: str, arms: Sequence[ArmInfo]) -> str:
    parts = []
    for arm in arms:
        found = find(scores, target, on, arm.name) if arm.role == "prompted" else None
        if found is not None:
            parts.append(f"{arm.name} {shown(found.estimate.value, found.unit)}")
    return f"prompting alone gives {target} of " + ", ".join(parts) if parts else ""


def _size(value: float, unit: str) -> str:
    return f"{100 * value:.1f} points" if unit == "fraction" else f"{value:.3g}"


def _other(side: str) -> str:
    return "negative" if side == "positive" else "positive"

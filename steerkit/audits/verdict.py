"""One sentence computed from the numbers, and the words of a single number."""

import math
from collections.abc import Sequence

from steerkit.audits.arms import ArmInfo
from steerkit.audits.scores import Score
from steerkit.statistics import Estimate

COSTS = ("correct", "compliance", "perplexity", "degeneration")
"""Checks whose change under steering is a cost (or a gain) worth a line of its own."""


def shown(value: float, unit: str) -> str:
    """A number as people read it: percent for fractions, two decimals of a class gap."""
    if math.isnan(value):
        return "n/a"
    if unit == "fraction":
        return f"{100 * value:.0f}%" if abs(100 * value) in (0, 100) else f"{100 * value:.1f}%"
    if unit == "class gaps":
        return f"{0.0 if abs(value) < 0.005 else value:.2f}"
    return f"{value:.3g}"


def interval(estimate: Estimate, unit: str) -> str:
    """`value [low, high]`; the sign of percent stands once."""
    low, high = (shown(x, unit).rstrip("%") for x in (estimate.low, estimate.high))
    return f"{shown(estimate.value, unit)} [{low}, {high}]"


def change(estimate: Estimate, unit: str) -> str:
    """A signed difference with its interval, in points for fractions."""
    if unit == "fraction":
        value, low, high = (100 * x for x in (estimate.value, estimate.low, estimate.high))
        return f"{value:+.1f} points [{low:+.1f}, {high:+.1f}]"
    form = "+.2f" if unit == "class gaps" else "+.3g"
    # What is below the rounding of float32 is shown as no change at all.
    value, low, high = (
        0.0 if abs(x) < 1e-6 else x for x in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def find(scores: Sequence[Score], check: str, side: str, arm: str) -> Score | None:
    """The score of a check, side and arm, or None where there is none."""
    return next((s for s in scores if (s.check, s.side, s.arm) == (check, side, arm)), None)


def verdict(scores: Sequence[Score], arms: Sequence[ArmInfo], target: str, on: str) -> str:
    """One sentence: what steering did to the target on one side, and what prompting does."""
    plain, steered = _named(arms, "plain"), _named(arms, "steered")
    after = find(scores, target, on, steered)
    before = find(scores, target, on, plain)
    if after is None or before is None or after.difference is None:
        return (
            f"Inconclusive: {target} on {on} prompts was not measured on both the plain and the "
            "steered model."
        )
    return (
        "; ".join(
            filter(None, (_effect(target, on, before, after), _prompted(scores, target, on, arms)))
        )
        + "."
    )


def costs(
    scores: Sequence[Score], arms: Sequence[ArmInfo], target: str, on: str
) -> tuple[str, ...]:
    """What else changed under steering, one line each, the target's own side left out."""
    steered = _named(arms, "steered")
    lines = []
    for s in scores:
        d = s.difference
        if s.arm != steered or d is None or (s.check, s.side) == (target, on):
            continue
        name = f"{s.check} on {s.side} prompts" if s.side != "text" else f"{s.check} of given texts"
        if s.q95 is not None:
            lines.append(
                f"{name}: {interval(s.estimate, s.unit)} {s.unit}, 95th percentile of tokens "
                f"{shown(s.q95.value, s.unit)}"
            )
        elif s.check in COSTS or s.check == target:
            open_ = " (inconclusive)" if d.direction == "inconclusive" else ""
            lines.append(f"{name}: {change(d.estimate, s.unit)}{open_}")
    return tuple(lines)


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


def _prompted(scores: Sequence[Score], target: str, on: str, arms: Sequence[ArmInfo]) -> str:
    parts = []
    for arm in arms:
        found = find(scores, target, on, arm.name) if arm.role == "prompted" else None
        if found is not None:
            parts.append(f"{shown(found.estimate.value, found.unit)} ({arm.name})")
    return "prompting alone gives " + ", ".join(parts) if parts else ""


def _size(value: float, unit: str) -> str:
    return f"{100 * value:.1f} points" if unit == "fraction" else f"{value:.3g}"


def _named(arms: Sequence[ArmInfo], role: str) -> str:
    return next((a.name for a in arms if a.role == role), role)

"""Finding the smallest strength at which a curve reaches a goal, in few batched rounds.

A hunt says which strengths it wants measured next, so that many hunts can share the rows of
one forward pass. It scans a coarse geometric grid first, takes the lowest crossing on it, and
closes in by false position with Illinois weights; positive quantities are treated on log-log
axes, where a KL that grows like strength squared is a straight line.

Source: Dowell and Jarratt 1971, BIT 11, 168 (the Illinois method).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from steerkit.errors import MethodError

Status = Literal["converged", "step", "non_monotone", "unreachable", "no_effect"]
STATUSES: tuple[Status, ...] = get_args(Status)
GRID = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Strengths of the first round, as far as they lie below the limit."""
SMALLEST = 2.0**-20
"""Below this strength nothing is tried."""
ROUNDS = 40
FALL = 0.05
"""A curve that falls by more than this fraction of its goal is called non-monotone."""


@dataclass(frozen=True)
class Root:
    """What a hunt found.

    Attributes:
        strength: where the goal is met; of a goal that no strength meets, the strength that
            comes nearest.
        value: the curve there.
        status: `converged`; `step` (the curve jumps over the goal: the strength is on the side
            that keeps the promise, next to the jump); `non_monotone` (the curve crosses
            the goal several times: the smallest root); `unreachable` (the goal lies above the
            whole curve); `no_effect` (the curve is zero).
        largest: the largest value measured anywhere.
    """

    strength: float
    value: float
    status: Status
    largest: float

    @property
    def met(self) -> bool:
        """Whether the goal is met at the strength."""
        return self.status in ("converged", "step", "non_monotone")


@dataclass
class Hunt:
    """The search for one curve's root: `ask`, measure, `tell`, until `ask` has no questions.

    Attributes:
        goal: the value to reach, > 0.
        limit: largest strength to try, > 0.
        log: whether values are positive and compared by ratio.
        below: of a jump, whether the strength before it is wanted (a budget) or the one after
            it (a target).
        tolerance: accepted |value / goal - 1|.
        narrow: a bracket narrower than this fraction of its strength is a jump.
    """

    goal: float
    limit: float
    log: bool = True
    below: bool = True
    tolerance: float = 0.01
    narrow: float = 1e-3
    points: dict[float, float] = field(default_factory=dict)
    _rounds: int = 0
    _weights: list[float] = field(default_factory=lambda: [1.0, 1.0])
    _bracket: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.goal) and self.goal > 0):
            raise MethodError(f"the goal of a calibration is a positive number; got {self.goal}")
        if not (math.isfinite(self.limit) and self.limit > 0):
            raise MethodError(f"the largest strength is a positive number; got {self.limit}")

    def ask(self) -> tuple[float, ...]:
        """Strengths to measure now; none when the hunt is over."""
        if not self.points:
            return (*(s for s in GRID if s < self.limit), min(self.limit, 2 * GRID[-1]))
        if self._rounds >= ROUNDS or self._close() is not None:
            return ()
        crossing = self._crossing()
        if crossing is None:
            return self._further()
        if crossing[0] == 0.0:
            return self._nearer(crossing[1])
        if math.log(crossing[1] / crossing[0]) <= math.log1p(self.narrow):
            return ()
        return (self._inside(*crossing),)

    def tell(self, found: Mapping[float, float]) -> None:
        """Values at the strengths that were asked for.

        Raises:
            MethodError: a value that is not a number.
        """
        bad = [s for s, v in found.items() if not math.isfinite(v)]
        if bad:
            raise MethodError(f"the value at strength {bad[0]:g} is not a number")
        before = self._crossing() if self.points else None
        self.points.update({float(s): float(v) for s, v in found.items()})
        self._rounds += 1
        now = self._crossing()
        if before and now and before[0] > 0:
            # Illinois: an end that is kept twice in a row counts half, so it cannot stick.
            for end in (0, 1):
                kept = now[end] == before[end] and now != before
                self._weights[end] = self._weights[end] / 2 if kept and self._bracket else 1.0
            self._bracket = now
        else:
            self._weights = [1.0, 1.0]
            self._bracket = None

    def root(self) -> Root:
        """The answer so far."""
        largest = max(self.points.values())
        close = self._close()
        crossing = self._crossing()
        if close is None and crossing is None:
            at = max(self.points, key=lambda s: (self.points[s], -s))
            nothing = all(abs(v) <= 1e-9 * self.goal for v in self.points.values())
            return Root(at, self.points[at], "no_effect" if nothing else "unreachable", largest)
        if close is not None:
            status: Status = "non_monotone" if self._falls_after(close) else "converged"
            return Root(close, self.points[close], status, largest)
        assert crossing is not None
        at = crossing[0 if self.below and crossing[0] > 0 else 1]
        status = "non_monotone" if self._falls_after(crossing[1]) else "step"
        return Root(at, self.points[at], status, largest)

    def _close(self) -> float | None:
        """The smallest strength whose value is the goal, if nothing below it crosses."""
        near = [s for s, v in self.points.items() if abs(v / self.goal - 1) <= self.tolerance]
        crossing = self._crossing()
        if not near or (crossing and crossing[1] < min(near)):
            return None
        return min(near)

    def _crossing(self) -> tuple[float, float] | None:
        """The lowest two neighbouring strengths with the goal between their values."""
        lower = 0.0
        for s in sorted(self.points):
            if self.points[s] >= self.goal:
                return lower, s
            lower = s
        return None

    def _further(self) -> tuple[float, ...]:
        """Larger strengths, up to the limit."""
        top = max(self.points)
        if top >= self.limit:
            return ()
        return tuple(dict.fromkeys(min(self.limit, top * factor) for factor in (2.0, 4.0)))

    def _nearer(self, upper: float) -> tuple[float, ...]:
        """Smaller strengths: where a parabola would meet the goal, and far below it."""
        if upper <= SMALLEST:
            return ()
        guess = upper * 0.5
        if self.log:
            guess = upper * min(0.5, math.sqrt(self.goal / self.points[upper]))
        return tuple(max(SMALLEST, s) for s in (guess * 0.9, guess * 0.1))

    def _inside(self, a: float, b: float) -> float:
        """A strength within the bracket, by false position on the logarithm of strength."""
        at_a, at_b = (
            self._height(self.points[s]) * w for s, w in zip((a, b), self._weights, strict=True)
        )
        share = -at_a / (at_b - at_a) if at_b > at_a else 0.5
        share = min(0.98, max(0.02, share))
        return math.exp(math.log(a) + share * math.log(b / a))

    def _height(self, value: float) -> float:
        """Distance from the goal, 0 where it is met."""
        if not self.log:
            return value - self.goal
        return math.log(max(value, 1e-6 * self.goal) / self.goal)

    def _falls_after(self, root: float) -> bool:
        """Whether a larger strength falls back below the goal."""
        return any(s > root and v < self.goal * (1 - FALL) for s, v in self.points.items())

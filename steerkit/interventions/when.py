"""Conditions: what has to stand in a stream for an intervention to act."""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal, get_args

from steerkit.direction import Direction
from steerkit.errors import InterventionError
from steerkit.interventions.level import Level, check_level, projection
from steerkit.interventions.operator import units
from steerkit.program import Gate, Latch, Measure, Pooled
from steerkit.registry import suggest
from steerkit.site import Site

On = Literal["last_prompt", "mean_prompt", "token"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
POOLED: tuple[Pooled, ...] = get_args(Pooled)


@dataclass(frozen=True, eq=False)
class When:
    """A condition on how far a stream points along a direction.

    `on="last_prompt"` and `on="mean_prompt"` are decided once a request, on its prompt (at its
    last token, or on the mean of its tokens), at the condition's site and before the
    interventions there. The answer is remembered: what it gates acts from the last prompt
    token on, at that site and later ones, for as long as the request is decoded, and means
    the same however the prompt is fed. `on="token"` is decided at every token anew, where
    the intervention acts, on the stream that it reads.

    Attributes:
        direction: what to look for.
        above: act where the measure is at least this; or
        below: act where it is less than this. One of the two is given. For a projection, in
            activation units or by name: `zero`, `negative_mean`, `positive_mean`.
        measure: `cosine` between the stream and the direction, or the `projection` on it, as
            a linear probe has it.
        on: where it is decided.
        site: where it is read; the direction's own site by default. A token's is always where
            the intervention acts.

    Raises:
        InterventionError: not a direction, not one threshold, an unknown measure or place, a
            cosine beyond 1, a site for a token's condition.

    Source: Lee et al. 2024, conditional activation steering (arXiv:2409.05907).
    """

    direction: Direction
    above: Level | None = None
    below: Level | None = None
    measure: Measure = "cosine"
    on: On = "last_prompt"
    site: Site | str | int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.direction, Direction):
            raise InterventionError(
                f"a condition takes a Direction, got a {type(self.direction).__name__}: "
                "directions come from extract or Direction.load"
            )
        for name, known in (("measure", MEASURES), ("on", get_args(On))):
            value = getattr(self, name)
            if value not in known:
                raise InterventionError(
                    f"no {name} named '{value}' for a condition; {suggest(str(value), known)}"
                )
        if (self.above is None) == (self.below is None):
            raise InterventionError(
                "a condition has one threshold, above= or below=; "
                f"got above={self.above} and below={self.below}"
            )
        level = check_level("threshold", self._level)
        if self.measure == "cosine" and (isinstance(level, str) or abs(level) > 1):
            raise InterventionError(
                f"the threshold of a cosine is a number from -1 to 1; got {level!r}. For a "
                "projection in activation units say measure='projection'"
            )
        if self.on == "token" and self.site is not None:
            raise InterventionError(
                f"a condition on='token' is read where the intervention acts, not at {self.site}; "
                "leave site= out"
            )
        if self.site is not None:
            object.__setattr__(self, "site", Site.parse(self.site))

    @property
    def _level(self) -> Level:
        level = self.above if self.above is not None else self.below
        assert level is not None
        return level

    @property
    def where(self) -> Site | None:
        """Where it is decided; None for a token's, which has no place of its own."""
        if self.on == "token":
            return None
        return self.direction.site if self.site is None else Site.parse(self.site)

    @property
    def threshold(self) -> float:
        """What the measure is compared with."""
        return projection(self._level, self.direction)

    def gate(self) -> Gate:
        """The gate of the terms that it closes."""
        return Gate(
            read=units([self.direction])[0],
            threshold=self.threshold,
            measure=self.measure,
            above=self.above is not None,
            latch="" if self.on == "token" else self._name(),
        )

    def latch(self) -> Latch:
        """The latch that decides it.

        Raises:
            InterventionError: a token's condition, which needs none.
        """
        if self.on == "token":
            raise InterventionError("a condition on='token' is not remembered, so has no latch")
        return Latch(self._name(), self.gate(), self.on)

    def _name(self) -> str:
        """The same for the same condition, so that it is decided once."""
        numbers = (self.threshold, self.measure, self.above is not None, self.on)
        digest = hashlib.sha256(repr(numbers).encode())
        digest.update(self.direction.unit.numpy().tobytes())
        return f"{self.where} {digest.hexdigest()[:16]}"

    def to_json(self) -> dict[str, Any]:
        """Everything but the direction."""
        return {
            "above": self.above,
            "below": self.below,
            "measure": self.measure,
            "on": self.on,
            "site": None if self.site is None else str(self.site),
        }

    def __str__(self) -> str:
        side = ">=" if self.above is not None else "<"
        level = self._level if isinstance(self._level, str) else f"{self._level:.3g}"
        place = "the token" if self.on == "token" else f"{self.on} at {self.where}"
        return f"{self.measure} with {self.direction.concept} {side} {level} on {place}"

"""Rows of a sweep, each a candidate with its intervals; and the choice on unseen prompts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from steerkit.direction import Direction
from steerkit.protocols import Intervention
from steerkit.searches.guards import Damage
from steerkit.searches.nulls import NullDraws
from steerkit.site import Site
from steerkit.statistics import Estimate


@dataclass(frozen=True, eq=False)
class SweepRow:
    """One candidate, measured on the selection prompts.

    Attributes:
        direction: the vector.
        intervention: operator, positions and strength with it, ready for `model.with_`.
        operator: `add`, `ablate`, ...
        reference: what the operator moves to, or empty.
        positions: the position rule.
        strength: see the operator.
        value: the objective while steered.
        effect: change of the objective in the aim's sense, paired by prompt.
        wrong_way: share of prompts whose objective moved against the aim.
        damages: what it does to the guarded prompts, by guard; empty without one.
        size: mean |delta h| over the touched tokens, in activation units.
        allowed: whether every guard is met.
    """

    direction: Direction
    intervention: Intervention
    operator: str
    reference: str
    positions: str
    strength: float
    value: Estimate
    effect: Estimate
    wrong_way: Estimate
    damages: Mapping[str, Damage]
    size: float
    allowed: bool

    @property
    def guard(self) -> Estimate | None:
        """The mean of the first guard (by default KL, in nats a token); None without a guard."""
        return _first(self.damages)

    @property
    def site(self) -> Site:
        """Where the direction was read and acts."""
        return self.direction.site

    @property
    def merit(self) -> tuple[float, float, float]:
        """Larger is better: effect, then less damage, then a smaller change of the stream."""
        return (self.effect.value, -(self.guard.value if self.guard else 0.0), -self.size)

    @property
    def method(self) -> str:
        """The extractor."""
        return self.direction.method

    @property
    def how(self) -> str:
        """Operator and reference in words."""
        return f"{self.operator} to {self.reference}" if self.reference else self.operator

    def __str__(self) -> str:
        return (
            f"{self.how}, {self.method} at {self.site}, {self.positions}, "
            f"strength {self.strength:g}"
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, without the vector."""
        return {
            "site": str(self.site),
            "method": self.method,
            "operator": self.operator,
            "reference": self.reference,
            "positions": self.positions,
            "strength": self.strength,
            "value": self.value.to_json(),
            "effect": self.effect.to_json(),
            "wrong_way": self.wrong_way.to_json(),
            "damages": {name: d.to_json() for name, d in self.damages.items()},
            "size": self.size,
            "allowed": self.allowed,
        }


@dataclass(frozen=True)
class Transfer:
    """The choice on one further contrast, measured once.

    Attributes:
        name: of the contrast.
        plain: the objective unsteered.
        steered: the objective with the choice.
        effect: its change in the aim's sense, paired by prompt.
        wrong_way: share of prompts whose objective moved against the aim.
    """

    name: str
    plain: Estimate
    steered: Estimate
    effect: Estimate
    wrong_way: Estimate

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "name": self.name,
            "plain": self.plain.to_json(),
            "steered": self.steered.to_json(),
            "effect": self.effect.to_json(),
            "wrong_way": self.wrong_way.to_json(),
        }


@dataclass(frozen=True)
class Final:
    """The choice, measured once on prompts that the search never saw.

    Attributes:
        plain: the objective unsteered.
        steered: the objective with the choice.
        effect: its change in the aim's sense, paired by prompt.
        wrong_way: share of prompts whose objective moved against the aim.
        by_group: mean effect on each group (template) of these prompts.
        damages: what it does to the guarded prompts, by guard.
        other_plain: the objective on the other side of the contrast, unsteered.
        other_steered: the same with the choice.
        nulls: random directions with the same operator, at the same size, on these prompts.
        transfer: the choice on further contrasts, such as other templates or another set.
        items: each prompt with both answers (where there are any) and both values.
    """

    plain: Estimate
    steered: Estimate
    effect: Estimate
    wrong_way: Estimate
    by_group: Mapping[str, float]
    damages: Mapping[str, Damage]
    other_plain: Estimate
    other_steered: Estimate
    nulls: tuple[NullDraws, ...]
    transfer: tuple[Transfer, ...] = ()
    items: tuple[Mapping[str, Any], ...] = field(repr=False, default=())

    @property
    def guard(self) -> Estimate | None:
        """The mean of the first guard; None without one."""
        return _first(self.damages)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "plain": self.plain.to_json(),
            "steered": self.steered.to_json(),
            "effect": self.effect.to_json(),
            "wrong_way": self.wrong_way.to_json(),
            "by_group": dict(self.by_group),
            "damages": {name: d.to_json() for name, d in self.damages.items()},
            "other_plain": self.other_plain.to_json(),
            "other_steered": self.other_steered.to_json(),
            "nulls": [n.to_json() for n in self.nulls],
            "transfer": [t.to_json() for t in self.transfer],
            "items": [dict(item) for item in self.items],
        }


def _first(damages: Mapping[str, Damage]) -> Estimate | None:
    return next((damage.mean for damage in damages.values()), None)

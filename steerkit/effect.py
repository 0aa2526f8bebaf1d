"""What adding a direction does to a model's output on prompts that it was not made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from steerkit.statistics import Estimate, Null


@dataclass(frozen=True)
class HeldOutEffect:
    """An effect at strength 1 on held-out prompts, beside what chance and other vectors give.

    Attributes:
        quantity: what moved, such as `log_prob(yes), first order`.
        effect: how far, with the interval over groups of prompts; its unit says in what.
        nulls: what vectors give that know nothing, each against the same effect.
        beside: what known vectors give in the same place (the plain model, a mean difference
            of equal norm), by name.
    """

    quantity: str
    effect: Estimate
    nulls: tuple[Null, ...] = ()
    beside: Mapping[str, Estimate] = field(default_factory=dict)

    @property
    def p(self) -> float:
        """The largest p of its nulls: every one of them has to fall. NaN without any."""
        return float(np.max([n.p for n in self.nulls])) if self.nulls else float("nan")

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "quantity": self.quantity,
            "effect": self.effect.to_json(),
            "nulls": [n.to_json() for n in self.nulls],
            "beside": {name: value.to_json() for name, value in self.beside.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "HeldOutEffect":
        """The inverse of `to_json`."""
        return cls(
            data["quantity"],
            Estimate(**data["effect"]),
            tuple(Null(**n) for n in data["nulls"]),
            {name: Estimate(**value) for name, value in data["beside"].items()},
        )

    def __str__(self) -> str:
        beside = "".join(f"; {name} {value}" for name, value in self.beside.items())
        chance = f", p = {self.p:.3g}" if self.nulls else ""
        return f"{self.quantity}: {self.effect} {self.effect.unit}{chance}{beside}"

"""Several rules at once, each in force for the requests of its domain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steerkit.errors import MethodError
from steerkit.interventions.gated import Gated
from steerkit.prompts import Contrast, Prompt
from steerkit.protocols import Model
from steerkit.searches.conditions.choice import level
from steerkit.searches.conditions.result import FoundCondition
from steerkit.searches.conditions.search import search_condition
from steerkit.searches.conditions.states import pooled_states
from steerkit.searches.rules.vector import RuleVector


@dataclass(frozen=True, eq=False)
class RuleBook:
    """Rules with the conditions under which each is put in force, request by request.

    Every condition is decided on the prompt, so that one batch may hold requests of all
    domains; several rules may hold at once, and then their vectors add up.

    Attributes:
        vectors: the rules.
        conditions: found for each.
    """

    vectors: tuple[RuleVector, ...]
    conditions: tuple[FoundCondition, ...]

    @classmethod
    def fit(
        cls,
        model: Model,
        vectors: Sequence[RuleVector],
        domains: Mapping[str, Sequence[Prompt | str]],
        *,
        n_permutations: int = 19,
        n_resamples: int = 20,
        seed: int = 0,
    ) -> "RuleBook":
        """Fit every rule's condition: the prompts of its domain against all others.

        Args:
            model: the model.
            vectors: rules.
            domains: by the rules' names, prompts to which each applies; further names are
                prompts to which none does.
            n_permutations: see `search_condition`.
            n_resamples: see `search_condition`.
            seed: of splits.

        Raises:
            MethodError: a rule without a domain, or no other prompts to tell it from.
        """
        found: list[FoundCondition] = []
        for vector in vectors:
            name = vector.rule.name
            if name not in domains or len(domains) < 2:
                raise MethodError(
                    f"the rule '{name}' needs prompts of its domain and of others; there are "
                    f"{', '.join(domains) or 'none'}"
                )
            others = [p for other, some in domains.items() if other != name for p in some]
            contrast = Contrast.of(domains[name], others, name=f"domain of {name}")
            found.append(
                search_condition(
                    model,
                    contrast,
                    acting=vector.site,
                    n_permutations=n_permutations,
                    n_resamples=n_resamples,
                    seed=seed,
                )
            )
        return cls(tuple(vectors), tuple(found))

    @property
    def interventions(self) -> tuple[Gated, ...]:
        """Each rule's vector under its condition; from the last prompt token on."""
        return tuple(
            v.add().when(c.when) for v, c in zip(self.vectors, self.conditions, strict=True)
        )

    def steer(self, model: Model) -> Model:
        """The view in which every request gets the rules of its domain."""
        return model.with_(*self.interventions)

    def chosen(self, model: Model, prompts: Sequence[Prompt | str]) -> list[tuple[str, ...]]:
        """The names of the rules that hold for each prompt."""
        asked = [Prompt.of(p) for p in prompts]
        names: list[list[str]] = [[] for _ in asked]
        for vector, condition in zip(self.vectors, self.conditions, strict=True):
            for i in np.flatnonzero(holds(model, condition, asked)):
                names[i].append(vector.rule.name)
        return [tuple(n) for n in names]


def holds(model: Model, condition: FoundCondition, prompts: Sequence[Prompt]) -> NDArray[np.bool_]:
    """For which prompts a condition holds, measured apart from any steering."""
    o = condition.option
    states = pooled_states(model, prompts, [o.site], [o.on])
    return o.holds(level(states[o.site, o.on], condition.when.direction.unit.double(), o.measure))

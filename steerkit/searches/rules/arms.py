"""A rule as a vector beside the same rule in the prompt, and beside vectors that say nothing."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from steerkit.errors import PromptError
from steerkit.interventions.operator import PositionsLike
from steerkit.interventions.when import When
from steerkit.prompts import Prompt
from steerkit.protocols import Model
from steerkit.searches.conditions.states import pooled_states
from steerkit.searches.measure import measure
from steerkit.searches.nulls import Shape, random_directions
from steerkit.searches.objectives import Objective
from steerkit.searches.rules.vector import RuleVector, gated, under
from steerkit.statistics import Estimate, Floats, cluster_mean, group_codes, holm

ARMS = ("none", "prompt", "vector", "both", "irrelevant", "random")
PAIRS = (
    ("prompt", "none"),
    ("vector", "none"),
    ("both", "none"),
    ("irrelevant", "none"),
    ("random", "none"),
    ("vector", "irrelevant"),
    ("vector", "random"),
    ("vector", "prompt"),
    ("both", "prompt"),
)
EXACT = 12
"""Up to so many groups, all flips of sign are tried."""
FLIPS = 4999


@dataclass(frozen=True)
class Comparison:
    """Two arms on the same queries.

    Attributes:
        one: an arm.
        other: the arm it is compared with.
        difference: of the objective, paired by query, with its interval.
        p: of a flip of signs of whole groups.
        adjusted: the same after Holm, over all comparisons.
    """

    one: str
    other: str
    difference: Estimate
    p: float
    adjusted: float

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {**self.__dict__, "difference": self.difference.to_json()}


@dataclass(frozen=True)
class RuleArms:
    """Every arm on the same queries, and what differs.

    Attributes:
        rule: its name.
        objective: what was measured.
        unit: its unit.
        levels: of every arm: `none`, `prompt` (the rule as system prompt), `vector`, `both`,
            `irrelevant` (the vector of a rule that says nothing), `random` (mean over random
            directions); all vectors of equal size.
        comparisons: paired differences, Holm-adjusted.
        size: of the vectors, as a fraction of the median norm.
        tokens: what the rule costs in the prompt.
        items: each query with its value in every arm.
    """

    rule: str
    objective: str
    unit: str
    levels: dict[str, Estimate]
    comparisons: tuple[Comparison, ...]
    size: float
    tokens: int
    items: tuple[dict[str, Any], ...]

    def difference(self, one: str, other: str) -> Comparison:
        """The comparison of two arms."""
        return next(c for c in self.comparisons if (c.one, c.other) == (one, other))

    def table(self) -> str:
        """Levels and differences as a markdown table."""
        lines = [
            f"| arm | {self.objective} ({self.unit}) | against | difference | p (Holm) |",
            "|" + "---|" * 5,
            f"| none | {self.levels['none']} | | | |",
        ]
        lines += [
            f"| {c.one} | {self.levels[c.one]} | {c.other} | {c.difference} | {c.adjusted:.3g} |"
            for c in self.comparisons
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            **self.__dict__,
            "levels": {k: e.to_json() for k, e in self.levels.items()},
            "comparisons": [c.to_json() for c in self.comparisons],
            "items": list(self.items),
        }

    def __repr__(self) -> str:
        return f"RuleArms({self})"

    def __str__(self) -> str:
        return f"rule '{self.rule}' at {self.size:g} of the median norm\n{self.table()}"

    def _repr_html_(self) -> str:
        heads, _, *rows = (line.strip("|").split("|") for line in self.table().splitlines())
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows
        )
        head = "".join(f"<th>{html.escape(c)}</th>" for c in heads)
        return f"<b>Rule {html.escape(self.rule)}</b><table><tr>{head}</tr>{body}</table>"


def compare_rule(
    model: Model,
    vector: RuleVector,
    queries: Sequence[Prompt | str],
    objective: Objective,
    *,
    condition: When | None = None,
    positions: PositionsLike = "all",
    n_random: int = 9,
    shape: Shape = "covariance_orthogonal",
    seed: int = 0,
) -> RuleArms:
    """Measure all arms on queries that had no part in making the vector.

    Args:
        model: the model.
        vector: from `rule_vector`.
        queries: asked with and without the rule; a system prompt of their own is replaced.
        objective: any; measured under each arm.
        condition: vectors act only where it holds.
        positions: the tokens to steer.
        n_random: random directions of equal size; at least 1.
        shape: how they are drawn.
        seed: of intervals, flips and random directions.

    Raises:
        PromptError: no queries.
    """
    asked = [Prompt.of(q) for q in queries]
    if not asked:
        raise PromptError("no queries to compare the arms on; give some the vector has not seen")
    groups = [p.group or f"query{i}" for i, p in enumerate(asked)]
    bare, ruled = under("", asked), under(vector.rule.text, asked)
    site = vector.site
    h = pooled_states(model, bare, [site], ["last_prompt"])[site, "last_prompt"]
    known = [vector.irrelevant.unit.double()]
    drawn = random_directions(
        vector.direction, h, h, max(1, n_random), shape=shape, apart_from=known, seed=seed + 1
    )
    acting = [
        gated(vector.add(d, positions=positions), condition)
        for d in (vector.direction, vector.irrelevant, *drawn)
    ]
    steered = measure(model, acting, objective, bare).values
    values: dict[str, Floats] = {
        "none": objective.score(model, bare).values[0],
        "prompt": objective.score(model, ruled).values[0],
        "vector": steered[0],
        "both": measure(model, acting[:1], objective, ruled).values[0],
        "irrelevant": steered[1],
        "random": steered[2:].mean(0),
    }
    gaps = [values[one] - values[other] for one, other in PAIRS]
    ps = [flipped(gap, groups, seed=seed) for gap in gaps]
    unit = f"change in {objective.unit}"  # a difference of rates is no rate
    comparisons = tuple(
        Comparison(one, other, cluster_mean(gap, groups, seed=seed, unit=unit), p, adjusted)
        for (one, other), gap, p, adjusted in zip(PAIRS, gaps, ps, holm(ps), strict=True)
    )
    return RuleArms(
        rule=vector.rule.name,
        objective=objective.name,
        unit=objective.unit,
        levels={
            arm: cluster_mean(values[arm], groups, seed=seed, unit=objective.unit) for arm in ARMS
        },
        comparisons=comparisons,
        size=vector.size,
        tokens=vector.tokens,
        items=tuple(
            {"prompt": p.text, "group": g, **{arm: float(values[arm][i]) for arm in ARMS}}
            for i, (p, g) in enumerate(zip(asked, groups, strict=True))
        ),
    )


def flipped(differences: Floats, groups: Sequence[str], *, seed: int = 0) -> float:
    """p of a mean difference when whole groups exchange the two arms: signs flipped.

    Exact for up to 12 groups, whose smallest p is 2 / 2^groups. NaN rows do not apply.
    """
    keep = ~np.isnan(differences)
    if not keep.any():
        return 1.0
    code = group_codes([g for g, k in zip(groups, keep, strict=True) if k])
    sums = np.bincount(code, weights=differences[keep])
    observed = abs(sums.sum())
    tolerance = 1e-9 * np.abs(sums).sum()
    if len(sums) <= EXACT:
        signs = np.array(list(product((-1.0, 1.0), repeat=len(sums))))
        return float((np.abs(signs @ sums) >= observed - tolerance).mean())
    rng = np.random.default_rng(seed)
    signs = rng.choice((-1.0, 1.0), (FLIPS, len(sums)))
    return float((1 + (np.abs(signs @ sums) >= observed - tolerance).sum()) / (1 + FLIPS))

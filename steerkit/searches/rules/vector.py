"""Rule vectors: a written rule as a direction, against a rule of the same length that says nothing.

A direction that tells a prompt with a rule from one without it may only know that there is a
system prompt, how long it is, or how rules sound. Here the state at the last prompt token
under the rule is compared with that under an irrelevant text of exactly as many tokens, and a
second irrelevant text gives the vector of a rule that says nothing, which has to fail where
the rule's own vector works.

Source: the activation-steering part of MENTOR (arXiv:2511.07107), as reconstructed from its
description; its retrieval by embeddings is replaced by fitted conditions, and the evolution of
rules by a judge is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steerkit.direction import Direction
from steerkit.errors import MethodError, PromptError, SiteError
from steerkit.interventions.add import Add
from steerkit.interventions.gated import Gated
from steerkit.interventions.operator import PositionsLike
from steerkit.interventions.when import When
from steerkit.prompts import Prompt
from steerkit.protocols import Model
from steerkit.searches.calibration.setup import parts
from steerkit.searches.conditions.choice import level
from steerkit.searches.conditions.states import pooled_states
from steerkit.searches.measure import Side, measure
from steerkit.searches.objectives import Objective
from steerkit.site import Site
from steerkit.statistics import Estimate, Floats, auc, group_bootstrap

BAND = (0.3, 0.7)
"""Relative depth of the layers that are tried."""
SIZES = (0.1, 0.2, 0.3)
"""Sizes that are tried, as fractions of the median norm of the stream."""
LARGEST = 0.3


@dataclass(frozen=True)
class Rule:
    """A rule, and two texts as long in tokens that have nothing to do with it.

    Attributes:
        name: short, for tables.
        text: the rule, as it would stand in the system prompt.
        irrelevant: the text that the rule is compared with, and the text whose own vector
            (against the first) is the baseline of a rule that says nothing.
    """

    name: str
    text: str
    irrelevant: tuple[str, str]


@dataclass(frozen=True, eq=False)
class RuleVector:
    """A rule as a direction, with the sizes at which it may be added.

    Attributes:
        rule: what was written.
        direction: mean difference of the states under the rule and under the irrelevant text;
            its scale is the length of that difference.
        irrelevant: the same of the second irrelevant text against the first, at the same site.
        aucs: held-out separation of the rule from the irrelevant text at every layer tried,
            with an interval that resamples groups of queries.
        median_norm: of the stream at the last token of held-out queries without any system
            prompt, activation units.
        size: what is added, as a fraction of that norm.
        sizes: effect of every size tried, in the sense of the rule in the prompt; empty where
            the size was given.
        tokens: what the rule costs in the prompt.
    """

    rule: Rule
    direction: Direction
    irrelevant: Direction
    aucs: Mapping[Site, Estimate]
    median_norm: float
    size: float
    sizes: Mapping[float, float]
    tokens: int

    @property
    def site(self) -> Site:
        """Where it acts."""
        return self.direction.site

    def add(
        self,
        direction: Direction | None = None,
        *,
        size: float | None = None,
        positions: PositionsLike = "all",
    ) -> Add:
        """The vector, or another direction, added at the size of this one."""
        chosen = direction or self.direction
        wanted = self.size if size is None else size
        return Add(chosen, wanted * self.median_norm / chosen.scale, positions)

    def __str__(self) -> str:
        return (
            f"rule '{self.rule.name}' at {self.site}: held-out AUC {self.aucs[self.site]}, added "
            f"at {self.size:g} of the median norm {self.median_norm:.3g}; {self.tokens} tokens "
            "of prompt saved"
        )


def rule_vector(
    model: Model,
    rule: Rule,
    queries: Sequence[Prompt | str],
    *,
    size: float | Sequence[float] = 0.2,
    objective: Objective | None = None,
    band: tuple[float, float] = BAND,
    sites: Sequence[Site | str | int] | None = None,
    positions: PositionsLike = "all",
    fraction: float = 0.5,
    seed: int = 0,
) -> RuleVector:
    """Extract a rule's vector, choose its layer, and its size where there is something to go by.

    The queries are split by group: the first part makes the vector; the second chooses the
    layer by how well the vector separates the rule from the irrelevant text (of equals, by
    the gap in standard deviations) and, with an objective, the size.

    Args:
        model: the model.
        rule: the rule and its two irrelevant texts.
        queries: what is asked under it; a system prompt of their own is replaced.
        size: what to add, as a fraction of the median norm; or several to choose from, with
            an objective: the one that moves it farthest to where the rule in the prompt does.
        objective: what the rule is about.
        band: relative depth of the layers tried: 0 is the first, 1 the last.
        sites: these instead of the band's resid_post.
        positions: the tokens to steer, where the size is chosen.
        fraction: the part of the groups that makes the vector.
        seed: of the split and intervals.

    Raises:
        PromptError: too few groups; texts that differ in length.
        SiteError: no layer within the band.
        MethodError: a size beyond 0.3, or several without an objective.
    """
    sizes = (float(size),) if isinstance(size, int | float) else tuple(float(s) for s in size)
    if not sizes or not all(0 < s <= LARGEST for s in sizes):
        raise MethodError(
            f"sizes of a rule vector are above 0 and at most {LARGEST} of the median norm (more "
            f"breaks what the model says); got {list(sizes)}"
        )
    if len(sizes) > 1 and objective is None:
        raise MethodError("to choose between sizes takes an objective; give one, or one size")
    places = _places(model, band, sites)
    asked = tuple(Prompt.of(q) for q in queries)
    side = Side(asked, tuple(p.group or f"query{i}" for i, p in enumerate(asked)))
    tokens = check_lengths(model, rule, asked)
    made, held = parts(side, fraction, seed=seed)

    def read(text: str, prompts: Sequence[Prompt]) -> dict[Site, Tensor]:
        states = pooled_states(model, under(text, prompts), places, ["last_prompt"])
        return {site: x for (site, _), x in states.items()}

    with_rule, first, second = (read(t, made.prompts) for t in (rule.text, *rule.irrelevant))
    held_rule, held_first = (read(t, held.prompts) for t in (rule.text, rule.irrelevant[0]))
    aucs: dict[Site, Estimate] = {}
    gaps: dict[Site, float] = {}
    vectors = {site: (with_rule[site] - first[site]).mean(0) for site in places}
    for site, v in vectors.items():
        if not float(v.norm()) > 0:
            raise MethodError(
                f"the rule '{rule.name}' changes nothing at {site}: is it in the prompt at all? "
                "Look at what the chat template makes of a system prompt"
            )
        a, b = (level(x[site], v / v.norm(), "projection") for x in (held_rule, held_first))
        aucs[site] = _separation(a, b, held.groups, seed)
        spread = np.sqrt((a.var() + b.var()) / 2)
        gaps[site] = float((a.mean() - b.mean()) / spread) if spread else float("inf")
    site = max(places, key=lambda s: (aucs[s].value, gaps[s], -s.order[0]))
    bare = pooled_states(model, under("", held.prompts), [site], ["last_prompt"])
    found = RuleVector(
        rule=rule,
        direction=_direction(model, rule.name, site, with_rule[site], first[site]),
        irrelevant=_direction(model, "irrelevant rule", site, second[site], first[site]),
        aucs=aucs,
        median_norm=float(bare[site, "last_prompt"].norm(dim=1).median()),
        size=sizes[0],
        sizes={},
        tokens=tokens,
    )
    if objective is None:
        return found
    effects = _effects(model, found, held, objective, sizes, positions)
    # Of equals the smallest; -0.0 and 0.0 are equal.
    best = max(sorted(sizes), key=lambda s: round(effects[s], 9))
    return replace(found, size=best, sizes=effects)


def check_lengths(model: Model, rule: Rule, queries: Sequence[Prompt]) -> int:
    """Refuse texts of different lengths in tokens; the tokens that the rule takes.

    Raises:
        PromptError: naming both texts, their lengths, and what to do.
    """
    texts = (rule.text, *rule.irrelevant)
    if len(set(texts)) < 3:
        raise PromptError(
            f"the rule '{rule.name}' needs two different irrelevant texts beside its own"
        )
    lengths = [[len(t.prompt) for t in model.tokenize(under(text, queries))] for text in texts]
    for text, found in zip(texts[1:], lengths[1:], strict=True):
        wrong = [i for i, (a, b) in enumerate(zip(lengths[0], found, strict=True)) if a != b]
        if wrong:
            i = wrong[0]
            raise PromptError(
                f"the rule '{rule.name}' ({rule.text!r}) and the irrelevant text {text!r} differ "
                f"in length: {lengths[0][i]} and {found[i]} tokens before {queries[i].text[:40]!r}"
                f". Reword the irrelevant text until it has {lengths[0][i] - found[i]:+d} tokens, "
                "or the vector would know the length"
            )
    bare = [len(t.prompt) for t in model.tokenize(under("", queries))]
    return lengths[0][0] - bare[0]


def gated(add: Add, condition: When | None) -> Add | Gated:
    """Under the condition, if there is one."""
    return add if condition is None else add.when(condition)


def under(text: str, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts with a text as their system prompt; with none, where it is empty."""
    return [replace(p, system=text) for p in prompts]


def _places(
    model: Model, band: tuple[float, float], sites: Sequence[Site | str | int] | None
) -> list[Site]:
    if sites is not None:
        return sorted({Site.parse(s) for s in sites})
    n = model.info.n_layers
    low, high = band
    found = [Site(i) for i in range(n) if low <= i / max(1, n - 1) <= high]
    if not found:
        raise SiteError(
            f"none of {n} layers lies between {low:.0%} and {high:.0%} of the depth; widen band=, "
            "or name sites="
        )
    return found


def _separation(a: Floats, b: Floats, groups: Sequence[str], seed: int) -> Estimate:
    labels = np.repeat([1, 0], [len(a), len(b)])

    def score(rows: NDArray[np.int64]) -> float:
        return auc(np.concatenate([a[rows], b[rows]]), labels[np.r_[rows, rows + len(a)]])

    return group_bootstrap(score, groups, n_resamples=200, seed=seed, unit="AUC")


def _direction(model: Model, concept: str, site: Site, high: Tensor, low: Tensor) -> Direction:
    v = (high - low).mean(0)
    unit = v / v.norm()
    return Direction(
        unit=unit.to(torch.float32),
        scale=float(v.norm()),
        site=site,
        method="mean_difference",
        concept=concept,
        positive_mean=float((high @ unit).mean()),
        negative_mean=float((low @ unit).mean()),
        model=model.info,
        pooling="last",
        provenance={"queries": len(high)},
    )


def _effects(
    model: Model,
    vector: RuleVector,
    held: Side,
    objective: Objective,
    sizes: Sequence[float],
    positions: PositionsLike,
) -> dict[float, float]:
    """Mean change at every size, counted towards where the rule in the prompt goes."""
    bare = under("", held.prompts)
    plain = objective.score(model, bare).values[0]
    ruled = objective.score(model, under(vector.rule.text, held.prompts)).values[0]
    sign = 1.0 if np.nanmean(ruled - plain) >= 0 else -1.0
    adds = [vector.add(size=s, positions=positions) for s in sizes]
    found = measure(model, adds, objective, bare).values
    return {s: float(sign * np.nanmean(row - plain)) for s, row in zip(sizes, found, strict=True)}

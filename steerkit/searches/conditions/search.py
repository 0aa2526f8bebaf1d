"""`search_condition`: the condition under which to steer, fitted and not guessed.

Directions are fitted on one part of a contrast, place, measure and threshold are chosen on a
second, and what the choice is worth is measured on a third. The parts share no group.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerkit.direction import Direction
from steerkit.errors import DirectionError, MethodError, SiteError
from steerkit.extraction.text_baseline import text_scores
from steerkit.interventions.when import MEASURES, POOLED, When
from steerkit.program import Measure, Pooled
from steerkit.prompts import Contrast
from steerkit.protocols import Intervention, Model
from steerkit.registry import suggest
from steerkit.searches.conditions.choice import (
    Labels,
    Option,
    Rows,
    Side,
    States,
    choose,
    f1_of,
    level,
    mean_differences,
    options,
    quality,
)
from steerkit.searches.conditions.result import FoundCondition
from steerkit.searches.conditions.states import pooled_states
from steerkit.site import Site
from steerkit.statistics import auc, group_codes, null, permutations

PARTS = (0.4, 0.3, 0.3)
"""Of the contrast: to fit directions on, to choose on, to report on."""


def search_condition(
    model: Model,
    contrast: Contrast,
    *,
    directions: Sequence[Direction] | None = None,
    sites: Sequence[Site | str | int] | None = None,
    acting: "Intervention | Site | str | int | None" = None,
    measures: Sequence[Measure] = MEASURES,
    on: Sequence[Pooled] = POOLED,
    n_permutations: int = 99,
    n_resamples: int = 100,
    token_budget: int = 16_384,
    seed: int = 0,
) -> FoundCondition:
    """Find the condition that holds on the positive prompts of a contrast and not on the others.

    Every place, measure and pooling gets its best threshold by F1; the best of all is taken,
    of equals the one whose threshold is farthest from any prompt.

    Args:
        model: the model whose prompts are read, before any interventions at each site.
        contrast: positive prompts, on which the condition is to hold, and negative ones.
        directions: to be read along, taken on other prompts; then nothing is fitted, and
            conditions may hold above or below. By default the difference of class means at
            every place, on the first part of the contrast.
        sites: where to read; by default the directions' own, or every layer's resid_post.
        acting: what will wait for the condition, or where; places behind it are left out.
        measures: `cosine`, `projection` or both.
        on: `last_prompt`, `mean_prompt` or both.
        n_permutations: permuted labellings that pass through the same search.
        n_resamples: of groups, for the stability of the choice.
        token_budget: padded tokens a forward pass.
        seed: of the split, resamples and permutations.

    Raises:
        PromptError: too few prompts or groups for three parts.
        SiteError: a site that the model lacks, or none before where it is to act.
        MethodError: an unknown measure or pooling; no threshold anywhere.
        DirectionError: no directions, several at one site, or of another model.

    Source: Lee et al. 2024, conditional activation steering (arXiv:2409.05907), which searches
    layer and threshold by F1 on the prompts it reports.
    """
    for name, values, known in (("measure", measures, MEASURES), ("pooling", on, POOLED)):
        bad = [v for v in values if v not in known]
        if bad or not values:
            word = f"no {name} named '{bad[0]}'" if bad else f"no {name} to try"
            raise MethodError(f"{word}; {suggest(str(bad[0]) if bad else '', known)}")
    given = _given(directions, model)
    places = _places(model, sites, acting, given)
    pieces = _split(contrast, bool(given), seed)
    prompts = tuple(p for piece in pieces for p in piece.prompts)
    groups = tuple(g for piece in pieces for g in piece.groups)
    labels = np.array([y for piece in pieces for y in piece.labels])
    part = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
    states = pooled_states(model, prompts, places, on, token_budget=token_budget)
    fit, select, report = (np.flatnonzero(part == i) for i in range(3)) if not given else (
        np.empty(0, np.int64), np.flatnonzero(part == 0), np.flatnonzero(part == 1)
    )  # fmt: skip
    sides: tuple[Side, ...] = ("above", "below") if given else ("above",)
    units = {(s, p): given[s].unit.double() for s, p in states} if given else None

    def searched(y: Labels, fit_on: Rows, select_on: Rows) -> tuple[Any, list[Option]]:
        along = mean_differences(states, y, fit_on) if units is None else units
        return along, options(states, along, y, select_on, measures, sides)

    along, found = searched(labels, fit, select)
    if not found:
        raise MethodError(
            f"no threshold separates anything at {', '.join(map(str, places))}: all prompts look "
            "the same there; read later sites"
        )
    best = choose(found)
    levels = level(states[best.site, best.on][report], along[best.site, best.on], best.measure)
    holds = best.holds(levels)
    groups_out = [groups[i] for i in report]
    held_out = quality(holds, labels[report], groups_out, seed=seed)

    rng = np.random.default_rng(seed + 1)
    shuffled = permutations(labels, groups, n_permutations, rng, within=part)
    null_held, null_selected = [], []
    for column in shuffled.T:
        fake_units, fake = searched(column, fit, select)
        if fake:
            one = choose(fake)
            x = level(states[one.site, one.on][report], fake_units[one.site, one.on], one.measure)
            null_held.append(f1_of(one.holds(x), column[report]))
            null_selected.append(one.f1)
    counts: dict[str, int] = {}
    for _ in range(n_resamples):
        drawn = [_redrawn(rows, groups, rng) for rows in (fit, select)]
        if all(len(set(labels[rows])) == 2 for rows in drawn if len(rows)):
            _, again = searched(labels, *drawn)
            if again:
                counts[choose(again).name] = counts.get(choose(again).name, 0) + 1
    direction = (
        given[best.site]
        if given
        else _direction(model, contrast, best, along[best.site, best.on], states, labels, fit, seed)
    )
    threshold = {best.side: best.threshold}
    text = text_scores(prompts, labels, [(np.flatnonzero(part != part[report[0]]), report)])
    return FoundCondition(
        when=When(direction, measure=best.measure, on=best.on, site=best.site, **threshold),
        option=best,
        held_out=held_out,
        auc=auc(levels if best.side == "above" else -levels, labels[report]),
        text=None
        if text is None
        else quality(text[report] > 0, labels[report], groups_out, seed=seed),
        permutation=null("labels permuted, searched again", held_out.f1.value, null_held),
        selected=null("labels permuted, searched again", best.f1, null_selected),
        stability={k: n / max(1, sum(counts.values())) for k, n in counts.items()},
        options=tuple(sorted(found, key=lambda o: o.merit, reverse=True)),
        levels=tuple(zip(levels.tolist(), labels[report].tolist(), strict=True)),
        sizes=(len(fit), len(select), len(report)),
        provenance=_provenance(model, contrast, seed),
    )


def _given(directions: Sequence[Direction] | None, model: Model) -> dict[Site, Direction]:
    if directions is None:
        return {}
    found: dict[Site, Direction] = {}
    for direction in directions:
        direction.check(model.info)
        if direction.site in found:
            raise DirectionError(
                f"two directions to read at {direction.site} ({found[direction.site].method} and "
                f"{direction.method}); a condition is searched along one at each site"
            )
        found[direction.site] = direction
    if not found:
        raise DirectionError("there are no directions to read; leave them out to have some fitted")
    return found


def _places(
    model: Model,
    sites: Sequence[Site | str | int] | None,
    acting: "Intervention | Site | str | int | None",
    given: Mapping[Site, Direction],
) -> list[Site]:
    wanted: Sequence[Site | str | int] = (
        sites if sites is not None else list(given) or range(model.info.n_layers)
    )
    places = sorted({Site.parse(s) for s in wanted})
    missing = [s for s in places if given and s not in given]
    if missing:
        raise DirectionError(f"no direction to read at {missing[0]}; extract one there")
    if acting is None:
        return places
    first = acting.sites[0] if isinstance(acting, Intervention) else Site.parse(acting)
    kept = [s for s in places if not first < s]
    if not kept:
        raise SiteError(
            f"a condition for what acts at {first} has to be read there or before, but the "
            f"sites to read begin at {places[0]}"
        )
    return kept


def _split(contrast: Contrast, given: bool, seed: int) -> list[Contrast]:
    if given:
        return list(contrast.split(0.5, seed=seed))
    first, rest = contrast.split(PARTS[0], seed=seed)
    return [first, *rest.split(PARTS[1] / (PARTS[1] + PARTS[2]), seed=seed + 1)]


def _redrawn(rows: Rows, groups: Sequence[str], rng: np.random.Generator) -> Rows:
    """Rows of as many groups, drawn with replacement."""
    if not len(rows):
        return rows
    code = group_codes([groups[i] for i in rows])
    members = [rows[code == g] for g in range(int(code.max()) + 1)]
    picked = rng.integers(0, len(members), len(members))
    return np.concatenate([members[i] for i in picked])


def _direction(
    model: Model,
    contrast: Contrast,
    best: Option,
    unit: Tensor,
    states: States,
    labels: Labels,
    fit: Rows,
    seed: int,
) -> Direction:
    along = level(states[best.site, best.on][fit], unit, "projection")
    high, low = (float(along[labels[fit] == side].mean()) for side in (1, 0))
    return Direction(
        unit=unit.float() / unit.float().norm(),
        scale=high - low,
        site=best.site,
        method="mean_difference",
        concept=contrast.name,
        positive_mean=high,
        negative_mean=low,
        model=model.info,
        pooling="last" if best.on == "last_prompt" else "mean_prompt",
        provenance={"contrast_sha256": contrast.sha256, "seed": seed, "n_prompts": len(fit)},
    )


def _provenance(model: Model, contrast: Contrast, seed: int) -> dict[str, Any]:
    from steerkit import __version__

    return {
        "model": model.info.name,
        "fingerprint": model.info.fingerprint,
        "contrast": contrast.sha256,
        "seed": seed,
        "steerkit": __version__,
        "torch": str(torch.__version__),
    }

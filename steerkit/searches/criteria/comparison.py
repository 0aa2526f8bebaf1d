"""`compare_criteria`: all criteria over all sites and positions, under the same draws."""

from collections.abc import Mapping, Sequence

import numpy as np

from steerkit.activations import Activations
from steerkit.errors import ActivationError
from steerkit.searches.criteria.rows import CRITERIA, NORMALISE, Normalise, Plan, Rows
from steerkit.searches.criteria.scores import check_normalise, check_sides, wins
from steerkit.searches.criteria.table import Column, CriteriaTable, Place
from steerkit.statistics import Floats, null


def compare_criteria(
    activations: Activations | Mapping[str, Activations],
    names: str | Sequence[str] | None = None,
    *,
    normalise: Normalise | Sequence[Normalise] = NORMALISE,
    n_resamples: int = 200,
    n_permutations: int = 199,
    n_folds: int = 5,
    seed: int = 0,
) -> CriteriaTable:
    """Score every site and position by every criterion, without steering or generating.

    Groups are resampled `n_resamples` times, the same draws everywhere, and in each all
    criteria are computed anew: standard errors, and how often each place comes first. Labels
    are permuted `n_permutations` times (within pairs; else between groups of one fold), and
    the largest value over all places is compared with the largest of each permutation. `js`
    and `js_repo` of pairs do not look at labels: their p is 1 whatever there is.

    Args:
        activations: labelled, one row a prompt; of several positions as from
            `capture_positions`, which reads them all in one pass.
        names: criteria; all of them by default.
        normalise: states as they are (`none`), each divided by its root mean square (`rms`),
            or both.
        n_resamples: 0 for no errors and winners.
        n_permutations: 0 for no null.
        n_folds: of `auc`.
        seed: of pairings of unpaired prompts, folds and resamples.

    Raises:
        MethodError: an unknown criterion or normalisation.
        ActivationError: no labels, one side only, several rows a prompt, or positions that
            were read on different prompts or models.
    """
    chosen = (names,) if isinstance(names, str) else tuple(names or CRITERIA.names())
    found = {name: CRITERIA[name] for name in chosen}
    ways = (normalise,) if isinstance(normalise, str) else tuple(normalise)
    for way in ways:
        check_normalise(way)
    read = _by_position(activations)
    first = next(iter(read.values()))
    order = np.argsort(first.prompt_index.numpy(), kind="stable")
    plan = Plan.of(
        first.row_labels.numpy()[order],
        [first.row_groups[i] for i in order],
        n_resamples=n_resamples,
        n_permutations=n_permutations,
        n_folds=n_folds,
        seed=seed,
    )
    places: list[Place] = []
    draws: dict[tuple[str, Normalise], list[Floats]] = {
        (name, way): [] for way in ways for name in found
    }
    for position, acts in read.items():
        rows = acts.prompt_index.argsort(stable=True)
        for i, site in enumerate(acts.sites):
            places.append(Place(site, position))
            for way in ways:
                here = Rows.of(acts.values[:, i][rows], plan, way)
                for name, criterion in found.items():
                    draws[name, way].append(criterion(here))
    columns = tuple(
        _column(name, way, np.stack(values), n_resamples) for (name, way), values in draws.items()
    )
    return CriteriaTable(
        tuple(places),
        columns,
        (int(plan.labels.sum()), int((1 - plan.labels).sum())),
        int(plan.groups.max()) + 1,
        n_resamples,
        {
            "model": first.info.name,
            "fingerprint": first.info.fingerprint,
            "contrast_sha256": first.contrast_sha256,
            "concept": str(first.provenance.get("concept") or "concept"),
            "steering": list(first.steering),
            "n_folds": len(plan.folds),
            "seed": seed,
        },
    )


def _column(name: str, way: Normalise, draws: Floats, n_resamples: int) -> Column:
    values, drawn, permuted = np.split(draws, [1, 1 + n_resamples], axis=1)
    errors = np.full(len(draws), np.nan)
    for i, row in enumerate(drawn):
        finite = row[np.isfinite(row)]
        if len(finite) > 1:
            errors[i] = finite.std(ddof=1)
    chance = None
    if permuted.shape[1]:
        what = f"largest of {len(draws)} under permuted labels"
        chance = null(what, float(np.fmax.reduce(values[:, 0])), np.fmax.reduce(permuted, axis=0))
    return Column(
        name,
        way,
        CRITERIA[name].unit,
        CRITERIA[name].measures,
        tuple(values[:, 0].tolist()),
        tuple(errors.tolist()),
        tuple(wins(drawn).tolist()) if n_resamples else (),
        chance,
    )


def _by_position(activations: Activations | Mapping[str, Activations]) -> dict[str, Activations]:
    """Checked: labelled, both sides, one row a prompt, the same prompts and model throughout."""
    read = (
        {activations.pooling: activations}
        if isinstance(activations, Activations)
        else dict(activations)
    )
    if not read:
        raise ActivationError("there are no activations to compare criteria on; capture some")
    first = next(iter(read.values()))
    for position, acts in read.items():
        check_sides(acts)
        if len(acts) != len(set(acts.prompt_index.tolist())):
            raise ActivationError(
                f"criteria compare prompts, but '{position}' has {len(acts)} rows for "
                f"{len(set(acts.prompt_index.tolist()))} prompts; capture one position, or a mean"
            )
        same = (
            acts.prompts == first.prompts
            and acts.labels == first.labels
            and acts.groups == first.groups
            and acts.info.fingerprint == first.info.fingerprint
            and sorted(acts.prompt_index.tolist()) == sorted(first.prompt_index.tolist())
        )
        if not same:
            raise ActivationError(
                f"the positions '{next(iter(read))}' and '{position}' were read on different "
                "prompts or models; read them in one go with capture_positions"
            )
    return read

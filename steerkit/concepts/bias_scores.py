"""Biases at each site, and their average over the sites that count, with intervals and nulls."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from steerkit.concepts.bias_probes import Concept, Draws
from steerkit.concepts.bias_references import References, active_entries
from steerkit.concepts.bias_result import TargetBias
from steerkit.site import Site
from steerkit.statistics import Estimate, Floats, holm, null, percentiles


@dataclass(frozen=True, eq=False)
class SiteBiases:
    """At one site: cosines of the observed probes, S of resamples and of both nulls."""

    cosines: tuple[float, float]
    resampled: Floats
    exchanged: Floats
    random: Floats
    active: int
    """Entries of the target's vector that are not zero."""


def site_biases(target: Tensor, fitted: References, arm: str, draws: Draws) -> SiteBiases:
    """Biases of one target's unit vectors (observed, then resampled) at one site."""
    first, second = fitted.units[arm]
    resampled, permuted = draws.resampled, draws.permuted
    gap = first - second
    return SiteBiases(
        (float(target[:, 0] @ first[:, 0]), float(target[:, 0] @ second[:, 0])),
        (target[:, resampled] * gap[:, resampled]).sum(0).numpy(),
        (target[:, :1] * gap[:, permuted]).sum(0).numpy(),
        fitted.random[arm],
        active_entries(target[:, 0]),
    )


def target_bias(
    name: str,
    sites: Sequence[Site],
    aucs: Sequence[float],
    biases: Sequence[SiteBiases],
    passed: Sequence[int],
    concept: Concept,
) -> TargetBias:
    """One target's average over the sites that passed; NaN where none did.

    A representation may be all zero at a site, and so have no cosine: it does not count there.
    """
    n = len({*concept.acts.groups})
    passed = [i for i in passed if np.isfinite(biases[i].cosines).all()]
    kept = [biases[i] for i in passed]
    each = np.array([b.cosines[0] - b.cosines[1] for b in biases])

    def average(values: Sequence[Floats], *, size: bool = False) -> Floats:
        stacked = np.array([np.abs(v) if size else v for v in values])
        return stacked.mean(0) if len(values) else np.empty(0)

    signed = float(each[list(passed)].mean()) if kept else float("nan")
    unsigned = float(np.abs(each[list(passed)]).mean()) if kept else float("nan")
    resampled = [b.resampled for b in kept]
    return TargetBias(
        target=name,
        signed=_estimate(signed, average(resampled), n),
        unsigned=_estimate(unsigned, average(resampled, size=True), n),
        by_site=tuple(each.tolist()),
        cosines=tuple(b.cosines for b in biases),
        aucs=tuple(aucs),
        passed=tuple(str(sites[i]) for i in passed),
        active=tuple(b.active for b in biases),
        exchanged=null(
            "references exchanged", abs(signed), np.abs(average([b.exchanged for b in kept]))
        ),
        random=null("random directions", abs(signed), np.abs(average([b.random for b in kept]))),
    )


def _estimate(value: float, draws: Floats, n: int) -> Estimate:
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return Estimate(value, float("nan"), float("nan"), n, "cosine")
    low, high = percentiles(draws, n)
    return Estimate(value, low, high, n, "cosine")


def corrected(rows: Sequence[TargetBias]) -> tuple[TargetBias, ...]:
    """Holm over the targets that have a bias at all."""
    tested = [i for i, row in enumerate(rows) if np.isfinite(row.p)]
    adjusted = dict(zip(tested, holm([rows[i].p for i in tested]), strict=True))
    return tuple(
        replace(row, p_adjusted=adjusted.get(i, float("nan"))) for i, row in enumerate(rows)
    )

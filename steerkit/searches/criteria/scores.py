"""One criterion over the sites of one capture, and how criteria agree."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steerkit.activations import Activations
from steerkit.errors import ActivationError, MethodError
from steerkit.registry import suggest
from steerkit.searches.criteria.rows import CRITERIA, NORMALISE, Normalise, Plan, Rows
from steerkit.site import Site
from steerkit.statistics import Floats


@dataclass(frozen=True)
class SiteScores:
    """One criterion over all sites; higher means the sides differ more.

    Attributes:
        name: the criterion.
        normalise: `none`, or `rms` (each state divided by its root mean square).
        sites: in forward order.
        values: one a site.
        chosen: how often each site came first when groups were resampled, fractions that sum
            to 1 (equals share); empty where that was not asked for.
    """

    name: str
    normalise: Normalise
    sites: tuple[Site, ...]
    values: tuple[float, ...]
    chosen: tuple[float, ...] = ()

    @property
    def best(self) -> Site:
        """The site that scores highest; of equals the earliest."""
        return self.sites[first_of(self.values)]

    @property
    def label(self) -> str:
        """Name and normalisation."""
        return labelled(self.name, self.normalise)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "name": self.name,
            "normalise": self.normalise,
            "sites": [str(s) for s in self.sites],
            "values": list(self.values),
            "chosen": list(self.chosen),
        }


def criterion(
    activations: Activations,
    name: str = "js",
    *,
    normalise: Normalise = "none",
    n_resamples: int = 0,
    seed: int = 0,
) -> SiteScores:
    """Score every site of labelled activations by one criterion.

    Args:
        activations: rows with labels.
        name: one of `CRITERIA.names()`: agreement, auc, fisher, gap, js, js_repo, probe,
            silhouette, stability.
        normalise: divide each state by its root mean square first (`rms`), or not.
        n_resamples: resample groups this often to see how stable the first place is.
        seed: of pairings of unpaired prompts, folds and resamples.

    Raises:
        MethodError: an unknown criterion or normalisation.
        ActivationError: no labels, or only one side.
    """
    found = CRITERIA[name]
    check_normalise(normalise)
    check_sides(activations)
    plan = Plan.of(
        activations.row_labels.numpy(), activations.row_groups, n_resamples=n_resamples, seed=seed
    )
    draws = np.stack(
        [
            found(Rows.of(activations.values[:, i], plan, normalise))
            for i in range(len(activations.sites))
        ]
    )
    chosen = tuple(wins(draws[:, 1:]).tolist()) if n_resamples else ()
    return SiteScores(name, normalise, activations.sites, tuple(draws[:, 0].tolist()), chosen)


def rank_agreement(scores: Sequence[SiteScores]) -> dict[tuple[str, str], float]:
    """Spearman correlation over sites between each two criteria, by their labels.

    NaN where a criterion is the same everywhere.
    """
    if len({s.sites for s in scores}) > 1:
        raise MethodError("criteria agree or not over the same sites; these cover different ones")
    values = {s.label: np.asarray(s.values) for s in scores}
    labels = list(values)
    return {
        (a, b): spearman(values[a], values[b])
        for i, a in enumerate(labels)
        for b in labels[i + 1 :]
    }


def spearman(a: Floats, b: Floats) -> float:
    """Rank correlation where both are numbers; NaN where one is the same everywhere."""
    from scipy.stats import rankdata

    both = ~(np.isnan(a) | np.isnan(b))
    a, b = rankdata(a[both]), rankdata(b[both])
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def wins(draws: Floats) -> Floats:
    """Of each row of `draws [candidate draw]`: the share of draws in which it is the largest.

    Equals share a draw; a draw without a number is left out. All zero where none has one.
    """
    usable = ~np.isnan(draws).all(0)
    values = np.where(np.isnan(draws), -np.inf, draws)[:, usable]
    if not values.shape[1]:
        return np.zeros(len(draws))
    top = values.max(0)
    # Sums in another order differ in their last digits and are equals all the same.
    close = values >= top - 1e-12 * np.where(np.isfinite(top), np.abs(top), 0.0)
    first: Floats = (close / close.sum(0)).mean(1)
    return first


def first_of(values: Sequence[float]) -> int:
    """Index of the largest; of equals the first, and NaN is never the largest."""
    return int(np.argmax(np.where(np.isnan(values), -np.inf, values)))


def labelled(name: str, normalise: Normalise) -> str:
    """How a criterion under a normalisation is called in tables."""
    return name if normalise == "none" else f"{name} ({normalise})"


def check_normalise(normalise: str) -> None:
    """Refuse an unknown normalisation."""
    if normalise not in NORMALISE:
        raise MethodError(f"no normalisation named '{normalise}'; {suggest(normalise, NORMALISE)}")


def check_sides(activations: Activations) -> None:
    """Refuse activations without labels or without one of the sides."""
    if len(set(activations.row_labels.tolist())) < 2:
        raise ActivationError("a criterion compares two sides; these activations hold only one")

"""Choosing a condition: where it is read, by what measure, and from which threshold it holds.

Tensors and labels in, one choice out, so that resamples and permuted labels pass through the very
same steps as the real search.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from steerkit.program import Measure, Pooled
from steerkit.site import Site
from steerkit.statistics import Estimate, Floats, cluster_mean, group_bootstrap

Rows = NDArray[np.int64]
Labels = NDArray[np.int64]
Place = tuple[Site, Pooled]
States = Mapping[Place, Float[Tensor, "row d_model"]]
"""Pooled prompts at every place that a condition may read, float64."""
Side = Literal["above", "below"]


@dataclass(frozen=True)
class Option:
    """One way to read a condition, with its best threshold on the selection part.

    Attributes:
        site: where it is read.
        on: the last prompt token, or the mean over the prompt.
        measure: `cosine` or `projection`.
        side: where the condition holds, above the threshold or below it.
        threshold: halfway between two prompts of the selection part.
        f1: of the positive label, on the selection part.
        margin: distance of the threshold from the nearest prompt, in standard deviations of
            the measure over the selection part.
    """

    site: Site
    on: Pooled
    measure: Measure
    side: Side
    threshold: float
    f1: float
    margin: float

    @property
    def name(self) -> str:
        """Everything but the threshold."""
        return f"{self.measure} of {self.on} at {self.site}"

    @property
    def merit(self) -> tuple[float, float]:
        """Larger is better: F1, then the margin."""
        return (self.f1, self.margin)

    def holds(self, levels: Floats) -> NDArray[np.bool_]:
        """For which values of the measure the condition holds."""
        return levels >= self.threshold if self.side == "above" else levels < self.threshold


def level(
    x: Float[Tensor, "row d_model"], unit: Float[Tensor, "d_model"], measure: Measure
) -> Floats:
    """Projection of every row on a unit vector, or its cosine with it (0 for a zero row)."""
    along = x @ unit.to(x.dtype)
    if measure == "cosine":
        along = along / torch.linalg.vector_norm(x, dim=1).clamp(min=torch.finfo(x.dtype).tiny)
    return np.asarray(along.numpy(), np.float64)


def mean_differences(states: States, labels: Labels, rows: Rows) -> dict[Place, Tensor]:
    """Unit difference of the class means of some rows at every place; zero where there is none."""
    positive, negative = rows[labels[rows] == 1], rows[labels[rows] == 0]
    units = {}
    for place, x in states.items():
        gap = x[positive].mean(0) - x[negative].mean(0)
        units[place] = gap / gap.norm().clamp(min=1e-12)
    return units


def options(
    states: States,
    units: Mapping[Place, Tensor],
    labels: Labels,
    rows: Rows,
    measures: Sequence[Measure],
    sides: Sequence[Side],
) -> list[Option]:
    """Every way to read the condition, each with its best threshold on `rows`."""
    found = []
    for (site, on), x in states.items():
        unit = units[site, on]
        for measure in measures:
            levels = level(x[rows], unit, measure)
            for side in sides:
                best = best_threshold(levels, labels[rows], side)
                if best is not None:
                    found.append(Option(site, on, measure, side, *best))
    return found


def best_threshold(
    levels: Floats, labels: Labels, side: Side = "above"
) -> tuple[float, float, float] | None:
    """(threshold, F1, margin) of the largest F1; of equals, of the largest margin.

    A threshold that all values pass, or none, is no condition; None where there is no other.
    """
    order = np.argsort(-levels if side == "above" else levels, kind="stable")
    x, y = levels[order], labels[order]
    cuts = np.flatnonzero(x[:-1] != x[1:])
    spread = float(levels.std())
    if not len(cuts) or spread == 0:
        return None
    f1 = 2 * y.cumsum()[cuts] / (cuts + 1 + y.sum())
    margin = np.abs(x[cuts] - x[cuts + 1]) / 2 / spread
    best = np.lexsort((margin, f1))[-1]
    cut = cuts[best]
    return float((x[cut] + x[cut + 1]) / 2), float(f1[best]), float(margin[best])


def choose(found: Sequence[Option]) -> Option:
    """Largest F1; of equals the largest margin, then the first."""
    return max(found, key=lambda o: o.merit)


@dataclass(frozen=True)
class Quality:
    """How well a condition tells the labels apart, on prompts that had no part in choosing it.

    Attributes:
        f1: harmonic mean of precision and recall.
        precision: of the prompts for which it holds, the share that are positive.
        recall: share of positive prompts for which it holds.
        false_alarms: share of negative prompts for which it holds.
        always: F1 of a condition that always holds: what is to be beaten.
    """

    f1: Estimate
    precision: Estimate
    recall: Estimate
    false_alarms: Estimate
    always: float

    def to_json(self) -> dict[str, object]:
        """A plain dictionary."""
        names = ("f1", "precision", "recall", "false_alarms")
        return {**{n: getattr(self, n).to_json() for n in names}, "always": self.always}


def f1_of(holds: NDArray[np.bool_], labels: Labels) -> float:
    """F1 of the positive label; 0 where nothing is right."""
    both = holds.sum() + labels.sum()
    return float(2 * (holds & (labels == 1)).sum() / both) if both else 0.0


def quality(
    holds: NDArray[np.bool_], labels: Labels, groups: Sequence[str], *, seed: int = 0
) -> Quality:
    """Everything with intervals that resample groups.

    Where every resample agrees (F1 is 1), the interval of F1 is made of the lower ends of
    precision's and recall's: a bootstrap of perfect data knows no doubt.
    """
    fired = holds.astype(np.float64)

    def share(of: NDArray[np.bool_], value: Floats) -> Estimate:
        return cluster_mean(np.where(of, value, np.nan), groups, seed=seed, unit="fraction")

    precision = share(holds, (labels == 1).astype(np.float64))
    recall = share(labels == 1, fired)
    f1 = group_bootstrap(
        lambda rows: f1_of(holds[rows], labels[rows]), groups, seed=seed, unit="fraction"
    )
    if f1.low == f1.high and precision.low + recall.low > 0:
        low = 2 * precision.low * recall.low / (precision.low + recall.low)
        f1 = Estimate(f1.value, min(low, f1.value), f1.high, f1.n, f1.unit)
    everything = np.ones(len(labels), dtype=bool)
    return Quality(f1, precision, recall, share(labels == 0, fired), f1_of(everything, labels))

"""Concept activation vectors in bulk: the same rows under many weights and labellings."""

from dataclasses import dataclass
from typing import Literal, Protocol

from jaxtyping import Float
from torch import Tensor

from steerkit.extraction import column_probes
from steerkit.extraction.training import Training
from steerkit.site import Site

Method = Literal["logistic", "mean_difference"]


@dataclass(frozen=True, eq=False)
class Cavs:
    """Probes `w . x + b`, one a column, in activation units.

    Attributes:
        weights: `[d_model fit]`, not normalised.
        biases: `[fit]`.
        rows: the activations that they were fitted to.
        contrast: how each row counts, `[row fit]`: a column's positives add up to 1 and its
            negatives to -1, so that `rows.T @ contrast` is the difference of its class means.
    """

    weights: Float[Tensor, "d_model fit"]
    biases: Float[Tensor, "fit"]
    rows: Float[Tensor, "row d_model"]
    contrast: Float[Tensor, "row fit"]


class Representation(Protocol):
    """How a concept is represented, given its probes: vectors whose cosines are compared."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    def __call__(self, site: Site, cavs: Cavs) -> Float[Tensor, "width fit"]:
        """One vector a probe; need not be normalised. Zero columns have no cosine (NaN)."""
        ...


@dataclass(frozen=True)
class PlainCav:
    """The normal of the probe itself, without a sparse autoencoder."""

    name: str = "CAV"

    def __call__(self, site: Site, cavs: Cavs) -> Float[Tensor, "d_model fit"]:
        """The weights."""
        return cavs.weights


def fit_cavs(
    rows: Training,
    labels: Float[Tensor, "row fit"],
    weights: Float[Tensor, "row fit"],
    *,
    method: Method = "logistic",
    c: float = 1.0,
    tolerance: float = 1e-4,
) -> Cavs:
    """A probe for each column of labels and row weights.

    Args:
        rows: the rows of one site, shared by all columns.
        labels: 1 or 0.
        weights: how often each row counts; 0 leaves it out.
        method: `logistic` (L2, C on features of mean variance 1) or `mean_difference` (its
            bias puts the boundary half way between the class means).
        c: inverse penalty for a whole set of rows; of a column it is divided by its mean
            weight, so that leaving rows out does not penalise more.
        tolerance: of the logistic fit, relative to the gradient at 0.
    """
    high, low = weights * labels, weights * (1 - labels)
    high, low = high / high.sum(0), low / low.sum(0)
    if method == "mean_difference":
        means = rows.x.T @ high, rows.x.T @ low
        w = means[0] - means[1]
        return Cavs(w, -(w * (means[0] + means[1])).sum(0) / 2, rows.x, high - low)
    size = float((rows.spread.sum() / (len(rows) * rows.d_model)).sqrt())
    penalty = c / weights.mean(0)
    w, b = column_probes.fit(
        rows.coordinates / size, labels, penalty, weights=weights, tolerance=tolerance,
        max_steps=100,
    )  # fmt: skip
    w = rows.axes.T @ w / size
    return Cavs(w, b - rows.mean @ w, rows.x, high - low)

"""How far two labelled clouds lie apart: four cluster indices, and the published mixtures of them.

Two of the four are one statistic: of two classes of equal size, Calinski-Harabasz is
(n - 2) / (4 Xie-Beni) exactly, so that a weighted sum of the two holds nothing that either
does not.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from steerkit.errors import ActivationError, MethodError

Floats = NDArray[np.float64]

INDICES = ("calinski_harabasz", "xie_beni", "davies_bouldin", "dunn")
HIGH_IS_APART = {
    "calinski_harabasz": True,
    "xie_beni": False,
    "davies_bouldin": False,
    "dunn": True,
}
"""Which way each index says that the classes lie apart."""


@dataclass(frozen=True)
class ClusterIndices:
    """The four indices of two labelled clouds; none has a unit.

    Attributes:
        calinski_harabasz: between-class over within-class mean square; grows with n.
        xie_beni: mean squared distance to the own centroid over that between centroids.
        davies_bouldin: sum of the classes' mean distances to their centroids over the distance
            between centroids.
        dunn: smallest distance between classes over the largest diameter of a class; two
            points decide it.

    Sources: Calinski and Harabasz 1974; Xie and Beni 1991; Davies and Bouldin 1979; Dunn 1974.
    """

    calinski_harabasz: float
    xie_beni: float
    davies_bouldin: float
    dunn: float

    def to_json(self) -> dict[str, float]:
        """A plain dictionary."""
        return asdict(self)


def cluster_indices(x: Floats, labels: Sequence[int] | NDArray[np.int64]) -> ClusterIndices:
    """The four indices of rows `x` `[row d]` in two classes, in the space they are given in.

    Raises:
        ActivationError: not two classes of at least two rows each.

    >>> square = np.array([[0., 0.], [0., 2.], [4., 0.], [4., 2.]])
    >>> found = cluster_indices(square, [0, 0, 1, 1])
    >>> found.calinski_harabasz, found.xie_beni, found.davies_bouldin, found.dunn
    (8.0, 0.0625, 0.5, 2.0)
    """
    y = np.asarray(labels)
    if x.ndim != 2 or y.shape != (len(x),) or min((y == 1).sum(), (y == 0).sum()) < 2:
        raise ActivationError(
            f"cluster indices need rows [row d] and a label 0 or 1 for each, at least two rows a "
            f"class; got rows {x.shape}, {(y == 1).sum()} labelled 1, {(y == 0).sum()} labelled 0"
        )
    weights = np.ones((len(x), 1))
    smooth = weighted_indices(x, y[:, None], weights)
    return ClusterIndices(
        **{name: float(smooth[name][0]) for name in INDICES[:3]},
        dunn=float(dunn(distances(x), y[:, None])[0]),
    )


def weighted_indices(x: Floats, labels: NDArray[np.int64], weights: Floats) -> dict[str, Floats]:
    """The three indices that are smooth in the rows, one for each column.

    Args:
        x: rows, `[row d]`.
        labels: 1 or 0, `[row column]`, or `[row 1]` for all columns.
        weights: how often each row counts, `[row column]` or `[row 1]`; whole numbers.

    Returns:
        Index -> `[column]`, and under `r2` the share of all variance that lies between the
        classes. NaN in columns where a class is empty.
    """
    x = x - x.mean(0)  # distances do not change, and rounding is that of the spread
    squares = (x**2).sum(1)
    one = labels * weights
    sides = (np.broadcast_to(weights - one, one.shape), one)
    n = weights.sum(0)
    counts, centroids, within, spread = [], [], 0.0, []
    with np.errstate(divide="ignore", invalid="ignore"):
        for side in sides:
            count = side.sum(0)
            centre = x.T @ side / count
            off = squares[:, None] - 2 * x @ centre + (centre**2).sum(0)
            off = np.maximum(off, 0)
            within = within + (side * off).sum(0)
            spread.append((side * np.sqrt(off)).sum(0) / count)
            counts.append(count)
            centroids.append(centre)
        gap = ((centroids[1] - centroids[0]) ** 2).sum(0)
        between = counts[0] * counts[1] / n * gap
        return {
            "calinski_harabasz": between * (n - 2) / within,
            "xie_beni": within / (n * gap),
            "davies_bouldin": (spread[0] + spread[1]) / np.sqrt(gap),
            "r2": between / (between + within),
        }


def distances(x: Floats) -> Floats:
    """Distance of every two rows, `[row row]`."""
    from scipy.spatial.distance import pdist, squareform

    return np.asarray(squareform(pdist(x)), dtype=np.float64)


def dunn(apart: Floats, labels: NDArray[np.int64]) -> Floats:
    """Dunn's index of each column of labels `[row column]`, from distances `[row row]`."""
    found = np.empty(labels.shape[1])
    for column, y in enumerate(labels.T == 1):
        between = apart[np.ix_(y, ~y)].min()
        widest = max(apart[np.ix_(y, y)].max(), apart[np.ix_(~y, ~y)].max())
        found[column] = between / widest if widest > 0 else np.inf
    return found


def share_between(r2: Floats | float, n: Floats | float) -> Floats:
    """The share of variance between two classes without what chance adds: 0 in the mean when
    labels mean nothing, 1 when each class is one point.

    1 - (1 - R^2)(n - 1)/(n - 2) for n rows: with labels at random E[R^2] = 1/(n - 1) in any
    number of dimensions, so this is 0 for any n. Source: Ezekiel 1930.

    >>> float(share_between(1 / 99, 100))
    0.0
    """
    r2, n = np.asarray(r2, dtype=np.float64), np.asarray(n, dtype=np.float64)
    return np.asarray(np.round(1 - (1 - r2) * (n - 1) / (n - 2), 15))


def aqi_original(davies_bouldin: float, dunn: float, *, gamma: float = 0.5) -> float:
    """The first published mixture: gamma / (1 + DBS) + (1 - gamma) DI / (1 + DI), in (0, 1).

    Depends on the number of rows through DI, which one outlying row sets. Kept to be compared
    with; `alignment_quality` does not use it. Source: arXiv:2506.13901.
    """
    return gamma / (1 + davies_bouldin) + (1 - gamma) * dunn / (1 + dunn)


def aqi_released(
    calinski_harabasz: Sequence[float], xie_beni: Sequence[float], *, gamma: float = 0.5
) -> list[float]:
    """The released code's index of each row of one model's table (seven axioms and `overall`).

    CHI is scaled to 0..100 between the smallest and the largest *row of the same model*, XB by
    its median and interquartile range in them, with a floor of 10. Whatever the model, some
    row is at either end, so that numbers of two models say nothing about each other; published
    ones are 55 and 5. Kept to be compared with; `alignment_quality` does not use it.
    Source: released code of arXiv:2506.13901.

    Raises:
        MethodError: fewer than two rows, or lengths that differ.
    """
    chi, xb = np.asarray(calinski_harabasz, float), np.asarray(xie_beni, float)
    if chi.shape != xb.shape or len(chi) < 2:
        raise MethodError(
            f"the released index scales over the rows of one model: give as many values of each "
            f"index, at least 2; got {chi.size} and {xb.size}"
        )
    width = np.ptp(chi)
    chi_part = 100 * (chi - chi.min()) / width if width > 0 else np.zeros_like(chi)
    low, middle, high = np.quantile(xb, [0.25, 0.5, 0.75])
    z = (xb - middle) / (high - low) if high > low else np.zeros_like(xb)
    xb_part = np.maximum(100 * (1 - 1 / (1 + np.exp(-z))), 10)
    return [float(v) for v in gamma * chi_part + (1 - gamma) * xb_part]

"""How alike two sets of features of the same rows are: CKA, RSA, Procrustes.

Features are `[row width]`; widths may differ, rows are the same prompts in the same order.
Everything is computed in float64. A measure that one side's lack of variation leaves undefined
is NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from steerkit.errors import ActivationError
from steerkit.statistics import Floats

Dissimilarity = Literal["euclidean", "correlation"]
Correlation = Literal["spearman", "pearson"]
Rows = NDArray[np.int64]

FEWEST = 5
"""Rows that the measures need: U-centring divides by n - 3, and 4 leave nothing to vary."""
CONSTANT = 1e-12
"""Variation below this fraction of the features' size is rounding."""


@dataclass(frozen=True, eq=False)
class Features:
    """One model's features at several sites, made ready for comparison.

    Attributes:
        coords: rotated features of each site, `[row min(row, width)]`: same Gram matrix.
        grams: inner products of rows.
        distances: dissimilarities of rows, for RSA.
    """

    coords: tuple[Floats, ...]
    grams: Float[np.ndarray, "site row row"]
    distances: Float[np.ndarray, "site row row"]

    @classmethod
    def of(
        cls, values: Sequence[Floats] | Floats, *, dissimilarity: Dissimilarity = "euclidean"
    ) -> "Features":
        """Prepare the features of each site, `[site][row width]`.

        Raises:
            ActivationError: too few rows, or sites with different rows.
        """
        sites = [np.asarray(v, dtype=np.float64) for v in values]
        if len({len(v) for v in sites}) != 1 or len(sites[0]) < FEWEST:
            raise ActivationError(
                f"similarity compares the same rows, at least {FEWEST} of them, at every site; "
                f"got {sorted({len(v) for v in sites})} rows; give more prompts"
            )
        # Rows are centred for numbers' sake: no measure here depends on where the origin is.
        sites = [v - v.mean(0) for v in sites]
        coords = tuple(_rotated(v) for v in sites)
        grams = np.stack([c @ c.T for c in coords])
        distances = np.stack([_distances(v, dissimilarity) for v in sites])
        return cls(coords, grams, distances)


def linear_cka(x: Float[np.ndarray, "row p"], y: Float[np.ndarray, "row q"]) -> float:
    """Debiased linear CKA: HSIC1(K, L) / sqrt(HSIC1(K, K) HSIC1(L, L)), K = xx', L = yy'.

    1 for features that are equal up to rotation and isotropic scale, about 0 for unrelated
    ones of any width (it can be slightly negative); the common estimator goes to 1 there
    (see `biased_linear_cka`).

    Source: Kornblith et al. 2019 (arXiv:1905.00414); HSIC1: Song et al. 2012 (JMLR 13).
    """
    a, b = Features.of([x]), Features.of([y])
    return float(cka_matrix(a, b)[0, 0])


def biased_linear_cka(x: Float[np.ndarray, "row p"], y: Float[np.ndarray, "row q"]) -> float:
    """The estimator in common use, which goes to 1 as width outgrows the number of rows.

    For comparison with published values only: 64 rows of unrelated noise of width 4,096 give
    0.98.

    Source: Kornblith et al. 2019 (arXiv:1905.00414).
    """
    x, y = (v.astype(np.float64) - v.mean(0) for v in (x, y))
    cross = np.linalg.norm(x.T @ y) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(cross / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def rsa(
    x: Float[np.ndarray, "row p"],
    y: Float[np.ndarray, "row q"],
    *,
    dissimilarity: Dissimilarity = "euclidean",
    correlation: Correlation = "spearman",
) -> float:
    """Correlation of the two dissimilarity matrices' upper triangles.

    `euclidean` distances are invariant to rotation; `correlation` (1 - Pearson across features)
    is not, because it takes the features' mean off each row.

    Source: Kriegeskorte et al. 2008 (Frontiers in Systems Neuroscience 2, 4).
    """
    a, b = (Features.of([v], dissimilarity=dissimilarity) for v in (x, y))
    return float(rsa_matrix(a, b, correlation=correlation)[0, 0])


def procrustes(x: Float[np.ndarray, "row p"], y: Float[np.ndarray, "row q"]) -> float:
    """Sum of singular values of x'y, both centred and of Frobenius norm 1.

    1 for features that are equal up to rotation and isotropic scale; the squared distance left
    after the best rotation is 2 - 2 times it. Unrelated features give more than 0, and near 1
    when width outgrows the rows: read it beside its permutation null.

    Source: Schoenemann 1966 (Psychometrika 31); Williams et al. 2021 (arXiv:2110.14739).
    """
    return float(procrustes_pairs(Features.of([x]), Features.of([y]), [(0, 0)])[0])


def cka_matrix(
    a: Features, b: Features, rows_a: Rows | None = None, rows_b: Rows | None = None
) -> Float[np.ndarray, "site_a site_b"]:
    """Debiased linear CKA of every two sites; row i of `rows_a` goes with row i of `rows_b`."""
    return _matrix(_u_centred(_taken(a.grams, rows_a)), _u_centred(_taken(b.grams, rows_b)))


def rsa_matrix(
    a: Features,
    b: Features,
    rows_a: Rows | None = None,
    rows_b: Rows | None = None,
    *,
    correlation: Correlation = "spearman",
) -> Float[np.ndarray, "site_a site_b"]:
    """RSA of every two sites."""
    parts = []
    for features, rows in ((a, rows_a), (b, rows_b)):
        square = _taken(features.distances, rows)
        upper = square[:, *np.triu_indices(square.shape[1], 1)]
        if correlation == "spearman":
            from scipy.stats import rankdata

            upper = rankdata(upper, axis=1)
        centred = upper - upper.mean(1, keepdims=True)
        still = np.ptp(upper, axis=1) <= CONSTANT * np.abs(upper).max(1)
        centred[still] = 0
        parts.append(centred)
    return _matrix(*parts)


def procrustes_pairs(
    a: Features,
    b: Features,
    pairs: Sequence[tuple[int, int]],
    rows_a: Rows | None = None,
    rows_b: Rows | None = None,
) -> Float[np.ndarray, "pair"]:
    """Procrustes similarity of the given sites of both."""
    found = []
    for i, j in pairs:
        x, y = (
            v if rows is None else v[rows]
            for v, rows in ((a.coords[i], rows_a), (b.coords[j], rows_b))
        )
        x, y = x - x.mean(0), y - y.mean(0)
        sizes = float(np.linalg.norm(x)) * float(np.linalg.norm(y))
        nuclear = float(np.linalg.svd(x.T @ y, compute_uv=False).sum())
        found.append(min(1.0, nuclear / sizes) if sizes > 0 else float("nan"))
    return np.array(found)


def _taken(square: Floats, rows: Rows | None) -> Floats:
    return square if rows is None else square[:, rows[:, None], rows[None]]


def _u_centred(grams: Floats) -> Floats:
    """U-centred Gram matrices, flat: their inner products are n(n-3) HSIC1.

    Source: Szekely and Rizzo 2014 (Annals of Statistics 42), there for distances.
    """
    n = grams.shape[1]
    size = np.abs(grams).max((1, 2))
    off = grams * (1 - np.eye(n))
    sums = off.sum(2)
    total = sums.sum(1)[:, None, None]
    centred = off - (sums[:, :, None] + sums[:, None]) / (n - 2) + total / ((n - 1) * (n - 2))
    centred *= 1 - np.eye(n)
    flat = centred.reshape(len(grams), -1)
    flat[np.linalg.norm(flat, axis=1) <= CONSTANT * size * n] = 0
    return flat


def _matrix(a: Floats, b: Floats) -> Floats:
    """Cosines of the rows of both; NaN for a row of zeros."""
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
        # Rounding must not push a model's similarity with itself above 1.
        return np.minimum(a @ b.T, 1.0)


def _rotated(x: Floats) -> Floats:
    """The same rows in no more dimensions than there are rows; rounding becomes zero."""
    if np.ptp(x, axis=0).max(initial=0) == 0:
        return np.zeros((len(x), 1))
    if x.shape[1] <= len(x):
        return x
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    return u * s


def _distances(x: Floats, kind: Dissimilarity) -> Floats:
    if kind == "correlation":
        x = x - x.mean(1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            x = np.nan_to_num(x / np.linalg.norm(x, axis=1, keepdims=True))
        return 1 - x @ x.T
    if kind != "euclidean":
        raise ActivationError(f"dissimilarity is 'euclidean' or 'correlation'; got '{kind}'")
    from scipy.spatial.distance import pdist, squareform

    return np.asarray(squareform(pdist(x)), dtype=np.float64)

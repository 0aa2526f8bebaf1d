"""`extract_from_moments`: directions from sufficient statistics, the rows long gone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.direction import Direction, Directions
from steerkit.errors import ActivationError, DirectionError, MethodError
from steerkit.extraction.class_moments import ClassMoments
from steerkit.extraction.labelled import FLAT
from steerkit.extraction.methods import METHODS
from steerkit.extraction.moments import Moments

RANK = 1e-14
"""A variance below this fraction of the largest is rounding."""


def extract_from_moments(
    moments: Moments,
    methods: str | Sequence[str] = "mean_difference",
    *,
    concept: str = "concept",
    penalty: float | None = None,
) -> Directions:
    """The directions that `extract` fits, from moments alone; for captures that are not kept.

    They equal those of the stored rows to rounding. They are not scored (`scores` is None and
    the polarity unchecked): a held-out score refits on folds and needs the rows. Score them on
    another pass over prompts that were not summed.

    Args:
        moments: of labelled rows, as summed by `Moments`.
        methods: one or several of mean_difference, whitened_mean_difference, lda, leace, ridge
            and pca, which needs moments that were summed with `pairs=True`.
        concept: what the directions stand for.
        penalty: of ridge, for features of mean variance 1, as in its grid. `extract` chooses
            it by leaving out groups, for which it needs the rows, so here it is given.

    Raises:
        MethodError: an unknown method, one that needs the rows, ridge without a penalty, pca
            without pairs.
        ActivationError: one side only.
        DirectionError: equal class means.
    """
    names = (methods,) if isinstance(methods, str) else tuple(methods)
    for name in names:
        if METHODS[name] and name not in ESTIMATORS:
            raise MethodError(
                f"'{name}' cannot be had from moments, it needs the rows: keep the activations "
                f"and use extract; from moments there are {', '.join(sorted(ESTIMATORS))}"
            )
    if "ridge" in names and (penalty is None or not penalty > 0):
        raise MethodError(
            f"ridge from moments needs a penalty above 0 for features of mean variance 1, such "
            f"as 100; got {penalty}: choosing it takes the rows"
        )
    if "pca" in names and moments.pairs is None:
        raise MethodError(
            "pca reads the differences within pairs, which these moments do not keep: sum the "
            "rows again with pairs=True (where there are no pairs it takes all differences)"
        )
    found = []
    for site in range(len(moments.sites)):
        seen = Sums.of(moments, site, penalty or 0.0)
        for name in names:
            w = ESTIMATORS[name](seen)
            found.append(_direction(moments, site, name, seen, w / w.norm(), concept))
    return Directions(tuple(found))


@dataclass(frozen=True, eq=False)
class Sums:
    """What the estimators read at one site, float64.

    Attributes:
        n: rows.
        delta: mean difference.
        scatter: total, about the mean of all rows.
        apart: n_positive n_negative / n; the total scatter is the one within classes plus
            `apart` delta delta'.
        fourth: sum of |row - mean|^4 about the mean of all rows.
        fourth_within: the same about the class means.
        pairs: sum of d d' over pairs, or None.
        penalty: of ridge.
    """

    n: int
    delta: Float[Tensor, "d_model"]
    scatter: Float[Tensor, "d_model d_model"]
    apart: float
    fourth: float
    fourth_within: float
    pairs: Float[Tensor, "d_model d_model"] | None
    penalty: float

    @classmethod
    def of(cls, moments: Moments, site: int, penalty: float) -> "Sums":
        """From the moments of both classes."""
        negative, positive = moments.parts[site]
        _require_both(moments, site, negative, positive)
        n = negative.n + positive.n
        mean = negative.mean + (positive.mean - negative.mean) * (positive.n / n)
        a, b = negative.about(mean), positive.about(mean)
        pairs = moments.pairs
        return cls(
            n,
            positive.mean - negative.mean,
            a.scatter + b.scatter,
            negative.n * positive.n / n,
            a.fourth + b.fourth,
            negative.fourth + positive.fourth,
            pairs.second[site] if pairs and pairs.n else None,
            penalty,
        )

    def shrinkage(self, *, within: bool) -> tuple[float, float]:
        """Ledoit and Wolf's shrinkage and the mean variance, of total or within-class rows."""
        n, d, norm2 = self.n, len(self.delta), float(self.delta @ self.delta)
        spread, frobenius = float(self.scatter.trace()), float((self.scatter**2).sum())
        if within:
            turned = float(self.delta @ self.scatter @ self.delta)
            frobenius += -2 * self.apart * turned + self.apart**2 * norm2**2
            spread -= self.apart * norm2
        frobenius, mean = frobenius / n**2, spread / (n * d)
        fourth = self.fourth_within if within else self.fourth
        noise = (fourth / n - frobenius) / (d * n)
        departure = frobenius / d - mean**2
        return min(1.0, max(0.0, noise) / max(departure, 1e-300)), mean

    def shrunk(self, *, within: bool) -> Float[Tensor, "d_model d_model"]:
        """(1 - r) total covariance + r m I, with r and m of total or within-class rows."""
        r, mean = self.shrinkage(within=within)
        return (1 - r) * self.scatter / self.n + r * mean * torch.eye(
            len(self.delta), dtype=torch.float64
        )


def _whitened(seen: Sums) -> Tensor:
    values, axes = torch.linalg.eigh(seen.shrunk(within=False))
    keep = values > RANK * values[-1]
    return axes[:, keep] @ (values[keep] ** -0.5 * (axes[:, keep].T @ seen.delta))


def _ridge(seen: Sums) -> Tensor:
    variance = float(seen.scatter.trace()) / (seen.n * len(seen.delta))
    eye = torch.eye(len(seen.delta), dtype=torch.float64)
    return _solve(seen.scatter + seen.penalty * variance * eye, seen.delta)


def _pca(seen: Sums) -> Tensor:
    from scipy.linalg import eigh

    second = seen.pairs
    if second is None:
        # 2 cov + delta delta', cov within classes: see extraction/pca.py.
        rest = 1 - 2 * seen.apart / seen.n
        second = torch.addr(2 * seen.scatter / seen.n, seen.delta, seen.delta, alpha=rest)
    last = len(second) - 1
    axis = torch.from_numpy(eigh(second.numpy(), subset_by_index=[last, last])[1][:, 0].copy())
    return axis if float(axis @ seen.delta) >= 0 else -axis


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Matrix^-1 right, for right in the span of a positive semi-definite matrix."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    diagonal = factor.diagonal()
    if not int(failed) and float(diagonal.min()) > RANK**0.5 * float(diagonal.max()):
        found: Tensor = torch.cholesky_solve(right[:, None], factor)[:, 0]
        return found
    values, axes = torch.linalg.eigh(matrix)
    keep = values > RANK * values[-1]
    return axes[:, keep] @ ((axes[:, keep].T @ right) / values[keep])


ESTIMATORS: dict[str, Callable[[Sums], Float[Tensor, "d_model"]]] = {
    "mean_difference": lambda seen: seen.delta,
    "whitened_mean_difference": _whitened,
    # The total covariance stands for the one within classes, up to size: see extraction/lda.py.
    "lda": lambda seen: _solve(seen.shrunk(within=True), seen.delta),
    "leace": lambda seen: _solve(seen.shrunk(within=False), seen.delta),
    "ridge": _ridge,
    "pca": _pca,
}
"""The methods that need no more than moments, by their names in `METHODS`."""


def _require_both(
    moments: Moments, site: int, negative: ClassMoments, positive: ClassMoments
) -> None:
    for part, side in ((negative, "negative"), (positive, "positive")):
        if not part.n:
            raise ActivationError(
                f"these moments have no {side} rows; a direction needs both sides: add "
                f"captures of {side} prompts"
            )
    size = max(
        float(p.scatter.trace()) / p.n + float(p.mean @ p.mean) for p in (negative, positive)
    )
    gap = float((positive.mean - negative.mean).norm())
    if gap <= FLAT * size**0.5:
        raise DirectionError(
            f"the class means at {moments.sites[site]} are the same (gap {gap:.2g}, root mean "
            f"square row norm {size**0.5:.3g}): look at the contrast, or leave that site out"
        )


def _direction(
    moments: Moments, site: int, method: str, seen: Sums, unit: Tensor, concept: str
) -> Direction:
    unit = unit.to(torch.float32)
    negative, positive = (float(p.mean @ unit.double()) for p in moments.parts[site])
    n_negative, n_positive = moments.n
    return Direction(
        unit=unit,
        scale=positive - negative,
        site=moments.sites[site],
        method=method,
        concept=concept,
        positive_mean=positive,
        negative_mean=negative,
        model=moments.info,
        pooling=moments.pooling,
        provenance={
            "from": "moments, not scored: held-out scores come from another pass",
            "contrast_sha256": ", ".join(moments.contrasts),
            "n_positive_rows": n_positive,
            "n_negative_rows": n_negative,
            "n_pairs": moments.pairs.n if moments.pairs else 0,
            **({"penalty": seen.penalty} if method == "ridge" else {}),
            "estimates": METHODS[method].estimates,
            "versions": {name: version(name) for name in ("steerkit", "torch", "numpy")},
        },
    )

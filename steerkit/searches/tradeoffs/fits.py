"""Which power of the strength a change follows: fits to means over items, items resampled.

Pure statistics on arrays `[strength item]`. Changes are paired with the unsteered model, so that
every form goes through zero at strength 0 exactly. Forms are fitted to the means over items by
least squares, each strength weighted by the inverse variance of its mean; since every strength
is measured on the same items, these means err together, and only resampling of whole groups of
items gives intervals.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from steerkit.errors import MethodError
from steerkit.statistics import Estimate, Floats, cluster_mean, group_codes, percentiles, row_draws

Form = Literal["linear", "absolute", "square", "quadratic", "power"]
FORMS: tuple[Form, ...] = get_args(Form)
Parity = Literal["odd", "even"]
NAMES: dict[Form, tuple[str, ...]] = {
    "linear": ("b",),
    "absolute": ("c",),
    "square": ("c",),
    "quadratic": ("b", "c"),
    "power": ("c", "k"),
}
"""The parameters of each form, in order."""
EXPONENTS = np.arange(0.1, 8.0001, 0.02)
"""Those that are tried; an interval that ends at either end is open there."""
FEWEST = 3
"""Strengths, without 0, below which no exponent can be told."""


@dataclass(frozen=True)
class Fit:
    """One form.

    Attributes:
        form: `linear` b x, `absolute` c|x|, `square` c x^2, `quadratic` b x + c x^2, `power`
            c|x|^k (with the sign of x where the parity is odd).
        parameters: by name, with intervals that resample groups of items.
        aicc: corrected Akaike criterion on the means, up to a constant; smaller is better.
            Its likelihood takes strengths for independent, which they are not.
        error: cross-validated: weighted squared error of the mean of left-out groups.
        excess: how much larger that is than the smallest of all forms.
        excess_se: standard error of the excess over folds.
    """

    form: Form
    parameters: dict[str, Estimate]
    aicc: float
    error: float
    excess: float
    excess_se: float

    def at(self, x: Floats, parity: Parity) -> Floats:
        """The fitted change at strengths."""
        return predicted(self.form, [p.value for p in self.parameters.values()], x, parity)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            **self.__dict__,
            "parameters": {name: p.to_json() for name, p in self.parameters.items()},
        }


@dataclass(frozen=True)
class CurveFits:
    """A change with strength, and every form fitted to it.

    Attributes:
        strengths: those measured, ascending, 0 left out.
        change: mean over items, with its interval.
        near: only strengths of at most this size were fitted.
        parity: whether the power form changes sign with the strength (`odd`) or not.
        fits: every form.
        chosen: the form with the fewest parameters whose cross-validated error is within one
            standard error of the smallest.
        draws: `[draw 2]` the power form's (c, k) of every resample.
    """

    strengths: tuple[float, ...]
    change: tuple[Estimate, ...]
    near: float
    parity: Parity
    fits: tuple[Fit, ...]
    chosen: Form
    draws: Floats = field(repr=False, compare=False)

    def fit(self, form: Form) -> Fit:
        """The fit of one form.

        Raises:
            MethodError: a form that was not fitted.
        """
        for one in self.fits:
            if one.form == form:
                return one
        raise MethodError(f"no form '{form}' was fitted; {', '.join(f.form for f in self.fits)}")

    @property
    def exponent(self) -> Estimate:
        """The free exponent k, with its interval."""
        return self.fit("power").parameters["k"]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "strengths": list(self.strengths),
            "change": [e.to_json() for e in self.change],
            "near": self.near,
            "parity": self.parity,
            "chosen": self.chosen,
            "fits": [f.to_json() for f in self.fits],
        }


@dataclass(frozen=True)
class Means:
    """Means over items at every strength, their weights, and resamples of both."""

    x: Floats
    y: Floats
    weights: Floats
    drawn: Floats
    """`[draw strength]`"""
    n_groups: int

    @classmethod
    def of(cls, x: Floats, values: Floats, groups: Sequence[str], n: int, seed: int) -> "Means":
        """Means of `values` `[strength item]`, weighted by the inverse variance between groups."""
        code = group_codes(groups)
        n_groups = int(code.max()) + 1
        if n_groups < 2:
            raise MethodError(
                "items of a single group say nothing about how much they vary; give items of "
                "several groups"
            )
        mean = values.mean(1)
        spread = np.stack([np.bincount(code, weights=row) for row in values - mean[:, None]])
        variance = (spread**2).sum(1) * n_groups / (n_groups - 1) / values.shape[1] ** 2
        # A strength at which nothing varies would take all the weight.
        floor = 1e-4 * variance.max() if variance.max() > 0 else 1.0
        counts = row_draws(groups, n_resamples=n, seed=seed)
        drawn = (values @ counts / counts.sum(0)).T
        return cls(x, mean, 1 / np.maximum(variance, floor), drawn, n_groups)

    def estimate(self, value: float, draws: Floats, unit: str) -> Estimate:
        """A fitted number with the interval of its resamples."""
        kept = draws[np.isfinite(draws)]
        low, high = percentiles(kept, self.n_groups) if kept.size else (np.nan, np.nan)
        return Estimate(float(value), low, high, self.n_groups, unit)


def fit_curve(
    strengths: Sequence[float] | Floats,
    change: Floats,
    groups: Sequence[str],
    *,
    parity: Parity,
    near: float | None = None,
    unit: str = "",
    n_resamples: int = 1000,
    n_folds: int = 10,
    seed: int = 0,
) -> CurveFits:
    """Fit every form to a change with strength.

    Args:
        strengths: one for each row of `change`; 0 is left out.
        change: `[strength item]`, paired with the unsteered model; an item with a NaN drops out.
        groups: of items; what is resampled and left out together.
        parity: of the power form.
        near: fit only strengths of at most this size: theorems about small strengths say
            nothing about large ones. By default all.
        unit: of the change.
        n_resamples: of groups.
        n_folds: of groups, at most; there are no more than groups.
        seed: of resamples and folds.

    Raises:
        MethodError: shapes that do not fit, fewer than three strengths near zero, items of
            fewer than two groups.
    """
    x = np.asarray(strengths, dtype=np.float64)
    y = np.asarray(change, dtype=np.float64)
    if y.ndim != 2 or len(y) != len(x) or y.shape[1] != len(groups):
        raise MethodError(
            f"changes have shape [strength item] = ({len(x)}, {len(groups)}); got {y.shape}"
        )
    whole: NDArray[np.bool_] = np.asarray(~np.isnan(y).any(axis=0))
    if not whole.any():
        raise MethodError("no item was measured at every strength; look at the objective's values")
    order = np.argsort(x)
    order = order[x[order] != 0]
    x, y, groups = (
        x[order],
        y[order][:, whole],
        [g for g, k in zip(groups, whole, strict=True) if k],
    )
    limit = float(np.abs(x).max()) if near is None and len(x) else float(near or 0)
    close = np.abs(x) <= limit
    if close.sum() < FEWEST:
        raise MethodError(
            f"an exponent needs at least {FEWEST} strengths other than 0 of size up to "
            f"{limit:g}; got {int(close.sum())}"
        )
    means = Means.of(x[close], y[close], groups, n_resamples, seed)
    one_sided = bool((means.x > 0).all() or (means.x < 0).all())
    forms = [f for f in FORMS if not (one_sided and f == "absolute")]
    errors = _cross_validated(forms, y[close], groups, means, parity, n_folds, seed)
    best = int(np.argmin(errors.mean(1)))
    excess = errors - errors[best]
    se = excess.std(1, ddof=1) / np.sqrt(errors.shape[1])
    fits, powers = [], np.empty((0, 2))
    for i, form in enumerate(forms):
        names, at = NAMES[form], _solve(form, means.y[None], means, parity)
        drawn = _solve(form, means.drawn, means, parity)
        powers = drawn if form == "power" else powers
        fits.append(
            Fit(
                form,
                {
                    name: means.estimate(at[0, j], drawn[:, j], "exponent" if name == "k" else unit)
                    for j, name in enumerate(names)
                },
                _aicc(form, at[0], means, parity),
                float(errors[i].mean()),
                float(excess[i].mean()),
                float(se[i]),
            )
        )
    near_best = [f for f in fits if f.excess <= f.excess_se + 1e-12 * abs(f.error)]
    chosen = min(near_best, key=lambda f: (len(f.parameters), f.error))
    return CurveFits(
        tuple(x.tolist()),
        tuple(cluster_mean(row, groups, seed=seed, unit=f"change in {unit}") for row in y),
        limit,
        parity,
        tuple(fits),
        chosen.form,
        powers,
    )


def predicted(
    form: Form, parameters: Sequence[float] | Floats, x: Floats, parity: Parity
) -> Floats:
    """The change that a form gives at strengths."""
    if form == "power":
        c, k = parameters
        side = np.sign(x) if parity == "odd" else np.ones_like(x)
        return np.asarray(c * side * np.abs(x) ** k)
    return _basis(form, x) @ np.asarray(parameters)


def _basis(form: Form, x: Floats) -> Floats:
    """`[strength parameter]` of a form that is linear in its parameters."""
    columns = {"linear": [x], "absolute": [abs(x)], "square": [x**2], "quadratic": [x, x**2]}
    return np.stack(columns[form], 1)


def _solve(form: Form, y: Floats, means: Means, parity: Parity) -> Floats:
    """Parameters `[draw parameter]` of weighted least squares to each row of `y`."""
    x, w = means.x, means.weights
    if form != "power":
        basis = _basis(form, x)
        return np.asarray(np.linalg.solve((basis.T * w) @ basis, (basis.T * w) @ y.T).T, np.float64)
    side = np.sign(x) if parity == "odd" else np.ones_like(x)
    # Scaled to at most 1, so that no power overflows.
    top = np.abs(x).max()
    shapes = side * (np.abs(x) / top) ** EXPONENTS[:, None]
    along, size = (y * w) @ shapes.T, (shapes**2) @ w
    explained = along**2 / size
    i = np.clip(explained.argmax(1), 1, len(EXPONENTS) - 2)
    rows = np.arange(len(y))
    left, mid, right = (explained[rows, i + d] for d in (-1, 0, 1))
    bend = left - 2 * mid + right
    step = np.where(bend < 0, 0.5 * (left - right) / np.where(bend < 0, bend, -1.0), 0.0)
    k = EXPONENTS[i] + np.clip(step, -1, 1) * (EXPONENTS[1] - EXPONENTS[0])
    shape = side * (np.abs(x) / top) ** k[:, None]
    c = ((y * w) * shape).sum(1) / ((shape**2) @ w)
    return np.stack([c / top**k, k], 1)


def _cross_validated(
    forms: Sequence[Form],
    y: Floats,
    groups: Sequence[str],
    means: Means,
    parity: Parity,
    n_folds: int,
    seed: int,
) -> Floats:
    """Weighted squared error on the mean of left-out groups, `[form fold]`."""
    code = group_codes(groups)
    n = min(n_folds, int(code.max()) + 1)
    fold_of = np.random.default_rng(seed).permutation(int(code.max()) + 1) % n
    errors = np.zeros((len(forms), n))
    for fold in range(n):
        out = fold_of[code] == fold
        inside, outside = y[:, ~out].mean(1), y[:, out].mean(1)
        for i, form in enumerate(forms):
            (parameters,) = _solve(form, inside[None], means, parity)
            gap = outside - predicted(form, parameters, means.x, parity)
            errors[i, fold] = float((means.weights * gap**2).sum() / means.weights.sum())
    return errors


def _aicc(form: Form, parameters: Floats, means: Means, parity: Parity) -> float:
    """n log(weighted residual) + 2p with the small-sample correction; the variance counts in p."""
    n, p = len(means.x), len(parameters) + 1
    gap = means.y - predicted(form, parameters, means.x, parity)
    residual = max(float((means.weights * gap**2).sum() / n), 1e-300)
    if n - p - 1 <= 0:
        return float("inf")
    return float(n * np.log(residual) + 2 * p + 2 * p * (p + 1) / (n - p - 1))

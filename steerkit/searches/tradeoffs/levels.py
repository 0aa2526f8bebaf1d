"""Curves that the theory of the trade-off gives for levels, fitted to means over items.

Source: the alignment-helpfulness trade-off under representation engineering
(arXiv:2401.16332): alignment follows tanh(a x + b) with a the margin times the size of the
change, and the probability of a right answer falls like 1 / (1 + alpha (1 + c x^2)).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steerkit.errors import MethodError
from steerkit.searches.tradeoffs.fits import Means
from steerkit.statistics import Estimate, Floats

Level = Literal["tanh", "hill"]
CLIP = 1 - 1e-4
"""Of a starting level in tanh, whose inverse ends at 1."""
STEPS = 60


@dataclass(frozen=True)
class LevelFit:
    """A level with strength.

    Attributes:
        form: `tanh`: tanh(a x + b); `hill`: P0 / (P0 + (1 - P0)(1 + c x^2)).
        parameters: `a` and `b`, or `P0` and `c`, with intervals that resample groups of items.
        residual: weighted root mean square of what is left, in units of the level.
        r2: share of the weighted variance over strengths that is explained.
    """

    form: Level
    parameters: dict[str, Estimate]
    residual: float
    r2: float

    def at(self, x: Floats) -> Floats:
        """The fitted level at strengths."""
        values = [p.value for p in self.parameters.values()]
        if self.form == "tanh":
            return np.asarray(np.tanh(values[0] * x + values[1]))
        p0 = values[0]
        return np.asarray(p0 / (p0 + (1 - p0) * (1 + values[1] * x**2)))

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            **self.__dict__,
            "parameters": {name: p.to_json() for name, p in self.parameters.items()},
        }


def fit_level(
    strengths: Sequence[float] | Floats,
    levels: Floats,
    groups: Sequence[str],
    form: Level,
    *,
    n_resamples: int = 300,
    seed: int = 0,
) -> LevelFit:
    """Fit a level's curve over the whole range of strengths, 0 included.

    Args:
        strengths: one for each row of `levels`.
        levels: `[strength item]`; for `tanh` from -1 to 1, for `hill` from 0 to 1.
        groups: of items, resampled whole.
        form: `tanh` or `hill`.
        n_resamples: of groups.
        seed: of resamples.

    Raises:
        MethodError: levels outside their range, fewer than three strengths.
    """
    x, y = np.asarray(strengths, np.float64), np.asarray(levels, np.float64)
    low = -1.0 if form == "tanh" else 0.0
    if len(x) < 3 or y.shape != (len(x), len(groups)):
        raise MethodError(
            f"a level's curve needs at least three strengths and levels [strength item]; got "
            f"{len(x)} strengths and levels of shape {y.shape} for {len(groups)} items"
        )
    whole: NDArray[np.bool_] = np.asarray(~np.isnan(y).any(axis=0))
    y, groups = y[:, whole], [g for g, k in zip(groups, whole, strict=True) if k]
    if not y.size or y.min() < low - 1e-9 or y.max() > 1 + 1e-9:
        raise MethodError(f"levels of a {form} curve lie from {low:g} to 1; these do not")
    means = Means.of(x, y, groups, n_resamples, seed)
    stacked = np.concatenate([means.y[None], means.drawn])
    solved = _tanh(means, stacked) if form == "tanh" else _hill(means, stacked)
    names = ("a", "b") if form == "tanh" else ("P0", "c")
    fit = LevelFit(
        form,
        {n: means.estimate(solved[0, j], solved[1:, j], "") for j, n in enumerate(names)},
        0.0,
        0.0,
    )
    w = means.weights / means.weights.sum()
    gap = means.y - fit.at(x)
    spread = float((w * (means.y - (w * means.y).sum()) ** 2).sum())
    left = float((w * gap**2).sum())
    return LevelFit(form, fit.parameters, left**0.5, 1 - left / spread if spread else float("nan"))


def _tanh(means: Means, y: Floats) -> Floats:
    x = means.x
    start = np.zeros((len(y), 2))
    centre = int(np.abs(x).argmin())
    start[:, 1] = np.arctanh(np.clip(y[:, centre], -CLIP, CLIP))
    far = int(np.abs(x - x[centre]).argmax())
    rise = np.arctanh(np.clip(y[:, far], -CLIP, CLIP)) - start[:, 1]
    start[:, 0] = rise / (x[far] - x[centre])

    def curve(p: Floats) -> tuple[Floats, Floats]:
        value = np.tanh(p[:, :1] * x + p[:, 1:])
        slope = 1 - value**2
        return value, np.stack([slope * x, slope], -1)

    return _least_squares(curve, start, y, means.weights)


def _hill(means: Means, y: Floats) -> Floats:
    """In the parameters logit P0 and log c, which know no bounds."""
    x = means.x
    centre, far = int(np.abs(x).argmin()), int(np.abs(x).argmax())
    p0, end = (np.clip(y[:, i], 1e-4, CLIP) for i in (centre, far))
    start = np.zeros((len(y), 2))
    start[:, 0] = np.log(p0 / (1 - p0))
    ratio = (1 - end) / end * p0 / (1 - p0) - 1
    start[:, 1] = np.log(np.maximum(ratio / x[far] ** 2, 1e-6))

    def curve(p: Floats) -> tuple[Floats, Floats]:
        growth = np.exp(np.clip(p[:, 1:], -40, 40)) * x**2
        value = 1 / (1 + np.exp(-np.clip(p[:, :1], -40, 40)) * (1 + growth))
        slope = value * (1 - value)
        return value, np.stack([slope, -slope * growth / (1 + growth)], -1)

    found = _least_squares(curve, start, y, means.weights)
    return np.stack([1 / (1 + np.exp(-found[:, 0])), np.exp(np.clip(found[:, 1], -40, 40))], 1)


def _least_squares(
    curve: Callable[[Floats], tuple[Floats, Floats]], start: Floats, y: Floats, weights: Floats
) -> Floats:
    """Levenberg-Marquardt on every row of `y` at once; parameters `[row 2]`."""
    p, damping = start, np.full(len(y), 1e-3)
    value, slopes = curve(p)
    error = (weights * (y - value) ** 2).sum(1)
    for _ in range(STEPS):
        weighted = slopes * weights[:, None]
        normal = np.einsum("rsi,rsj->rij", weighted, slopes)
        towards = np.einsum("rsi,rs->ri", weighted, y - value)
        diagonal = np.einsum("rii->ri", normal)
        damped = normal + np.eye(2) * (damping[:, None] * diagonal + 1e-300)[:, None, :]
        tried = p + np.linalg.solve(damped, towards[..., None])[..., 0]
        new_value, new_slopes = curve(tried)
        new_error = (weights * (y - new_value) ** 2).sum(1)
        better = new_error < error
        p = np.where(better[:, None], tried, p)
        value = np.where(better[:, None], new_value, value)
        slopes = np.where(better[:, None, None], new_slopes, slopes)
        error = np.where(better, new_error, error)
        damping = np.clip(np.where(better, damping / 5, damping * 5), 1e-12, 1e12)
    return p

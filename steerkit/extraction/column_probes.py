"""Many L2-regularised linear probes on the same rows, as columns of one product."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

HISTORY = 6
"""Curvature pairs that L-BFGS keeps."""


@dataclass(frozen=True)
class Loss:
    """A convex loss of the margin m = s (w.z + b), s = 1 for positive rows and -1 for others.

    Attributes:
        value: the loss at each margin.
        slope: its derivative.
        curvature: a bound on its second derivative.
    """

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    curvature: float


LOGISTIC = Loss(lambda m: torch.nn.functional.softplus(-m), lambda m: -torch.sigmoid(-m), 0.25)
"""log(1 + exp(-m)): the objective of scikit-learn's LogisticRegression."""
SQUARED_HINGE = Loss(lambda m: (1 - m).clamp(min=0) ** 2, lambda m: -2 * (1 - m).clamp(min=0), 2.0)
"""max(0, 1 - m)^2: the objective of scikit-learn's LinearSVC, intercept not penalised."""


def fit(
    z: Float[Tensor, "row d"],
    labels: Float[Tensor, "row k"],
    c: Float[Tensor, "k"],
    *,
    loss: Loss = LOGISTIC,
    weights: Float[Tensor, "row k"] | None = None,
    tolerance: float = 1e-6,
    max_steps: int = 300,
) -> tuple[Float[Tensor, "d k"], Float[Tensor, "k"]]:
    """Minimise |w|^2 / 2 + C sum_i weight_i loss(s_i (w.z_i + b)) in every column.

    The intercept b is not penalised. Give rows in their principal axes: the bound of
    Boehning (1992) on the curvature is then diagonal and makes an exact preconditioner.

    Args:
        z: centred rows, axes orthogonal.
        labels: 1 or 0.
        c: inverse penalty of each column.
        loss: of the margin.
        weights: of each row in each column; 0 leaves it out.
        tolerance: on the largest gradient entry, relative to that at w = 0.
        max_steps: L-BFGS steps at most.
    """
    n, k = labels.shape
    rows = torch.cat([z, torch.ones(n, 1, dtype=z.dtype)], 1)
    sign = 2 * labels.to(z.dtype) - 1
    weight = sign if weights is None else weights * sign
    penalty = torch.ones(rows.shape[1], 1, dtype=z.dtype)
    penalty[-1] = 0
    curvature = loss.curvature * (rows**2).sum(0)[:, None]
    inverse = 1 / (penalty + c * curvature)

    def gradient(at: Tensor, columns: Tensor) -> Tensor:
        error = weight[:, columns] * loss.slope(sign[:, columns] * (rows @ at))
        return penalty * at + c[columns] * (rows.T @ error)

    found = torch.zeros(rows.shape[1], k, dtype=z.dtype)
    found = minimise(found, gradient, inverse, tolerance=tolerance, max_steps=max_steps)
    return found[:-1], found[-1]


def minimise(
    start: Float[Tensor, "d k"],
    gradient: Callable[[Tensor, Tensor], Tensor],
    inverse: Float[Tensor, "d k"],
    *,
    tolerance: float,
    max_steps: int,
    since: Tensor | None = None,
) -> Float[Tensor, "d k"]:
    """Preconditioned L-BFGS in every column; finished columns drop out.

    Steps are accepted by the sign of the new slope: for a convex objective a step past the
    minimum of its line shows as a positive slope there, and is then interpolated.

    Args:
        start: where each column starts.
        gradient: of points `[d j]`, given the numbers of their columns.
        inverse: what a gradient is multiplied by to make a step; a column of it for all, or each.
        tolerance: on the largest gradient entry, relative to that at the start.
        max_steps: at most.
        since: the start that the tolerance is relative to, if another one.
    """
    found = start.clone()
    live = torch.arange(found.shape[1])
    first = gradient(found if since is None else since, live).abs().amax(0)
    target = (tolerance * first).expand(len(live))
    inverse = inverse.expand(-1, len(live))
    at, g = found.clone(), gradient(found, live)
    steps: list[Tensor] = []
    changes: list[Tensor] = []
    for _ in range(max_steps):
        going = g.abs().amax(0) > target[live]
        if not going.all():
            found[:, live[~going]] = at[:, ~going]
            live, at, g = live[going], at[:, going], g[:, going]
            steps, changes = [s[:, going] for s in steps], [y[:, going] for y in changes]
        if not len(live):
            return found
        step = _direction(g, steps, changes, inverse[:, live])
        slope = (g * step).sum(0)
        new = gradient(at + step, live)
        for _ in range(20):
            beyond = (new * step).sum(0)
            over = beyond > 0.9 * slope.abs()
            if not over.any():
                break
            # Secant of the slope along the line, kept inside it.
            fraction = (slope / (slope - beyond)).clamp(0.1, 0.9)
            step = torch.where(over, step * fraction, step)
            slope = torch.where(over, slope * fraction, slope)
            new = torch.where(over, gradient(at + step, live), new)
        steps, changes = [*steps, step][-HISTORY:], [*changes, new - g][-HISTORY:]
        at, g = at + step, new
    found[:, live] = at
    return found


def _direction(
    g: Tensor, steps: list[Tensor], changes: list[Tensor], inverse: Tensor
) -> Float[Tensor, "d k"]:
    """The two-loop recursion, all columns at once."""
    q = g.clone()
    factors = []
    for s, y in zip(reversed(steps), reversed(changes), strict=True):
        curvature = (s * y).sum(0)
        rho = torch.where(curvature > 0, 1 / curvature, torch.zeros_like(curvature))
        a = rho * (s * q).sum(0)
        q -= a * y
        factors.append((a, rho))
    if steps:
        # The bound is loose where rows are classified well; the last step shows by how much.
        s, y = steps[-1], changes[-1]
        bounded = (y * inverse * y).sum(0)
        q *= torch.where(bounded > 0, (s * y).sum(0) / bounded, 1.0).clamp(min=1.0)
    q = inverse * q
    for (a, rho), s, y in zip(reversed(factors), steps, changes, strict=True):
        q += s * (a - rho * (y * q).sum(0))
    return -q

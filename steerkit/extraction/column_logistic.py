"""Many L2-regularised logistic regressions on the same rows, as columns of one product."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

HISTORY = 6
"""Curvature pairs that L-BFGS keeps."""


def fit(
    z: Float[Tensor, "row d"],
    labels: Float[Tensor, "row k"],
    c: Float[Tensor, "k"],
    *,
    weights: Float[Tensor, "row k"] | None = None,
    tolerance: float = 1e-6,
    max_steps: int = 300,
) -> tuple[Float[Tensor, "d k"], Float[Tensor, "k"]]:
    """Minimise |w|^2 / 2 + C sum_i weight_i log(1 + exp(-s_i (w.z_i + b))) in every column.

    The intercept b is not penalised. Give rows in their principal axes: the bound of
    Boehning (1992) on the curvature is then diagonal and makes an exact preconditioner.

    Args:
        z: centred rows, axes orthogonal.
        labels: 1 or 0.
        c: inverse penalty of each column.
        weights: of each row in each column; 0 leaves it out.
        tolerance: on the largest gradient entry, relative to that at w = 0.
        max_steps: L-BFGS steps at most.
    """
    n, k = labels.shape
    rows = torch.cat([z, torch.ones(n, 1, dtype=z.dtype)], 1)
    weight = torch.ones_like(labels, dtype=z.dtype) if weights is None else weights
    target = labels.to(z.dtype)
    penalty = torch.ones(rows.shape[1], 1, dtype=z.dtype)
    penalty[-1] = 0
    curvature = (rows**2).sum(0)[:, None] / 4
    inverse = 1 / (penalty + c * curvature)

    def gradient(at: Tensor, columns: Tensor) -> Tensor:
        p = torch.sigmoid(rows @ at)
        error = weight[:, columns] * (p - target[:, columns])
        return penalty * at + c[columns] * (rows.T @ error)

    found = torch.zeros(rows.shape[1], k, dtype=z.dtype)
    first = gradient(found, torch.arange(k)).abs().amax(0)
    _lbfgs(found, gradient, inverse, tolerance * first, max_steps)
    return found[:-1], found[-1]


def _lbfgs(
    found: Tensor,
    gradient: Callable[[Tensor, Tensor], Tensor],
    inverse: Tensor,
    target: Tensor,
    max_steps: int,
) -> None:
    """Preconditioned L-BFGS in every column, writing into `found`; finished columns drop out.

    Steps are accepted by the sign of the new slope: these objectives are convex, so a step
    past the minimum of its line shows as a positive slope there, and is then interpolated.
    """
    live = torch.arange(found.shape[1])
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
            return
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

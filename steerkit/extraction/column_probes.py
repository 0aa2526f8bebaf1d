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
        curvature: its second derivative, given the slope.
    """

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    curvature: Callable[[Tensor], Tensor]


LOGISTIC = Loss(
    lambda m: torch.nn.functional.softplus(-m),
    lambda m: -torch.sigmoid(-m),
    lambda slope: -slope * (1 + slope),
)
"""log(1 + exp(-m)): the objective of scikit-learn's LogisticRegression."""
SQUARED_HINGE = Loss(
    lambda m: (1 - m).clamp(min=0) ** 2,
    lambda m: -2 * (1 - m).clamp(min=0),
    lambda slope: 2.0 * (slope < 0),
)
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

    The intercept b is not penalised. Give rows in their principal axes: the curvature is then
    nearly diagonal (exactly where all rows are equally undecided), which makes the steps right.

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
    # Columns lie along memory as rows: products of few columns are then several times faster.
    sign = (2 * labels.T.to(z.dtype) - 1).contiguous()
    weight = None if weights is None else weights.T.to(z.dtype).contiguous()
    penalty = torch.ones(1, rows.shape[1], dtype=z.dtype)
    penalty[:, -1] = 0
    squares = (rows**2).sum(0)

    def gradient(at: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        whole = len(columns) == k
        side = sign if whole else sign[columns]
        slope = loss.slope(side * (at @ rows.T))
        curvature = loss.curvature(slope)
        if weight is not None:
            counted = weight if whole else weight[columns]
            slope, curvature = slope * counted, curvature * counted
        # Where no row is undecided the curvature is that of the penalty alone, but not for long.
        typical = curvature.mean(1, keepdim=True).clamp(min=1e-3)
        size = c[columns, None]
        inverse = 1 / (penalty + size * typical * squares)
        return penalty * at + size * ((slope * side) @ rows), inverse

    found = torch.zeros(k, rows.shape[1], dtype=z.dtype)
    found = minimise(found, gradient, tolerance=tolerance, max_steps=max_steps).T
    return found[:-1], found[-1]


def fit_rows(
    x: Float[Tensor, "row d"],
    labels: Float[Tensor, "row k"],
    c: Float[Tensor, "k"],
    *,
    loss: Loss = LOGISTIC,
    weights: Float[Tensor, "row k"] | None = None,
    tolerance: float = 3e-5,
    max_steps: int = 300,
) -> tuple[Float[Tensor, "d k"], Float[Tensor, "k"]]:
    """`fit` on rows as they come: centred, turned into their principal axes, and back.

    In the dtype of the rows; the axes come from the smaller Gram matrix, which float32 resolves
    down to spreads of a thousandth of the largest: enough for a penalised fit of centred rows.
    """
    mean = x.mean(0)
    centred = x - mean
    n, d = x.shape
    wide = d > n
    spread, axes = torch.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    if wide:
        keep = spread > 10 * n * torch.finfo(x.dtype).eps * spread.max()
        size, axes = spread[keep].sqrt(), axes[:, keep]
    z = axes * size if wide else centred @ axes
    turned, b = fit(
        z,
        labels,
        c.to(x.dtype),
        loss=loss,
        weights=weights,
        tolerance=tolerance,
        max_steps=max_steps,
    )
    w = centred.T @ (axes @ (turned / size[:, None])) if wide else axes @ turned
    return w, b - mean @ w


def minimise(
    start: Float[Tensor, "k d"],
    gradient: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    *,
    tolerance: float,
    max_steps: int,
    since: Tensor | None = None,
) -> Float[Tensor, "k d"]:
    """Preconditioned L-BFGS on every row of `start`, a problem each; finished ones drop out.

    Steps are accepted by the sign of the new slope: for a convex objective a step past the
    minimum of its line shows as a positive slope there, and is then interpolated.

    Args:
        start: where each problem starts.
        gradient: of points `[j d]`, given the numbers of their problems; and what it is
            multiplied by to make a step, `[j d]`: about the inverse curvature there.
        tolerance: on the largest gradient entry, relative to that at the start.
        max_steps: at most.
        since: the start that the tolerance is relative to, if another one.
    """
    found = start.clone()
    live = torch.arange(len(found))
    at = found.clone()
    g, inverse = gradient(found, live)
    first = g if since is None else gradient(since, live)[0]
    target = (tolerance * first.abs().amax(1)).expand(len(live))
    past: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(max_steps):
        going = (g.abs().amax(1) > target[live]).nonzero().flatten()
        if len(going) < len(live):
            found[live] = at
            live, at, g, inverse = live[going], at[going], g[going], inverse[going]
            past = [(s[going], y[going], rho[going]) for s, y, rho in past]
        if not len(live):
            return found
        step = _direction(g, past, inverse)
        slope = (g * step).sum(1, keepdim=True)
        new, inverse = gradient(at + step, live)
        for _ in range(20):
            beyond = (new * step).sum(1, keepdim=True)
            over = beyond > 0.9 * slope.abs()
            if not over.any():
                break
            # Secant of the slope along the line, kept inside it.
            fraction = (slope / (slope - beyond)).clamp(0.1, 0.9)
            step = torch.where(over, step * fraction, step)
            slope = torch.where(over, slope * fraction, slope)
            new, inverse = gradient(at + step, live)
        change = new - g
        curvature = (step * change).sum(1, keepdim=True)
        rho = torch.where(curvature > 0, 1 / curvature, 0.0)
        past = [*past, (step, change, rho)][-HISTORY:]
        at, g = at + step, new
    found[live] = at
    return found


def _direction(
    g: Tensor, past: list[tuple[Tensor, Tensor, Tensor]], inverse: Tensor
) -> Float[Tensor, "k d"]:
    """The two-loop recursion, all problems at once.

    Args:
        g: the gradients, `[k d]`.
        past: steps s, the changes y of the gradient over them, and 1 / (s.y), oldest first.
        inverse: about the inverse curvature, `[k d]`.
    """
    q = g.clone()
    factors = []
    for s, y, rho in reversed(past):
        a = rho * (s * q).sum(1, keepdim=True)
        q.addcmul_(a, y, value=-1)
        factors.append(a)
    q *= inverse
    for a, (s, y, rho) in zip(reversed(factors), past, strict=True):
        q.addcmul_(s, a - rho * (y * q).sum(1, keepdim=True))
    return q.neg_()

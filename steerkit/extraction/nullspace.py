"""Iterated probes: each reads what is left after those before it were projected away."""

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.extraction.penalty import feature_size
from steerkit.extraction.ridge import GRID, left_out_error
from steerkit.extraction.spans import SPANS, Labelling, orthonormal
from steerkit.extraction.training import Training

EXHAUSTED = 1e-8
"""A probe whose weights are smaller than this fraction of the first one's reads rounding."""


class Nullspace:
    """Iterative nullspace projection with ridge probes, as many as there are axes.

    Each probe is fitted to the rows projected onto the nullspace of those before it, which is
    the same as keeping its weights orthogonal to theirs. The first one is the `ridge`
    direction, and its penalty is kept for all. Mean differences cannot be iterated like this:
    with one of them projected away the class means agree, and the second has nothing to read.

    Source: Ravfogel et al. 2020, INLP (arXiv:2004.07667), which takes any linear classifier.
    """

    estimates = "w_j = argmin |s - w.x - b|^2 + penalty |w|^2 orthogonal to w_1 .. w_(j-1)"

    def __call__(
        self, rows: Training, labelling: Labelling, k: int
    ) -> Float[Tensor, "column d_model axis"]:
        """Every labelling and axis from one factorisation, by Lagrange multipliers."""
        size = feature_size(rows)
        z, spread = rows.coordinates / size, rows.spread / size**2
        target = 2 * labelling.labels - 1
        target = target - target.mean(0)
        chosen = torch.tensor(GRID, dtype=z.dtype)[left_out_error(rows, target).argmin(0)]
        inverse = (1 / (spread[:, None] + chosen)).T[:, :, None]
        free = inverse * (z.T @ target).T[:, :, None]
        found = free / free.norm(dim=1, keepdim=True)
        while found.shape[2] < min(k, len(spread)):
            turned = inverse * found
            held = torch.linalg.solve(found.mT @ turned, found.mT @ free)
            left = free - turned @ held
            if float(left[0].norm()) <= EXHAUSTED * float(free[0].norm()):
                break
            found = orthonormal(torch.cat([found, left / left.norm(dim=1, keepdim=True)], 2))
        return torch.einsum("ad,kas->kds", rows.axes, found[:, :, :k])


SPANS.register("inlp")(Nullspace())

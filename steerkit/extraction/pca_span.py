"""The leading principal components of positive-minus-negative differences."""

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.extraction.pairs import label_pairs
from steerkit.extraction.spans import RANK, SPANS, Labelling, orthonormal
from steerkit.extraction.training import Training, gap, principal

HALVINGS = 100


class PCASpan:
    """Axes along which positive-minus-negative differences are largest in mean square.

    The differences are those of the direction of the same name: within pairs, or where there
    are none of all positive and negative rows, 2 cov + delta delta'. The second moment is
    about zero, so the mean difference counts among the axes.

    Source: Zou et al. 2023, representation engineering (arXiv:2310.01405).
    """

    estimates = "top k eigenvectors of E[dd'], d = positive - negative"

    def __call__(
        self, rows: Training, labelling: Labelling, k: int
    ) -> Float[Tensor, "column d_model axis"]:
        """One decomposition: within pairs labels change nothing, otherwise a term of rank 1."""
        pairs = label_pairs(rows.groups, labelling.labels[:, 0])
        if len(pairs):
            differences = rows.x[pairs[:, 0]] - rows.x[pairs[:, 1]]
            _, size, axes = principal(differences)
            keep = min(k, int((size > RANK * size[0]).sum()))
            return axes[:keep].T.expand(labelling.labels.shape[1], -1, -1)
        return _all_pairs(rows, labelling.labels, k)


SPANS.register("pca")(PCASpan())


def _all_pairs(
    rows: Training, y: Float[Tensor, "row column"], k: int
) -> Float[Tensor, "column d_model axis"]:
    """Leading eigenvectors of 2 cov + delta delta' for each labelling.

    In the principal axes of all rows the matrix is D + u u', D diagonal with a_1 >= a_2 ...
    Its j-th eigenvalue is the root of sum(u_i^2 / (root - a_i)) = 1 between a_j and a_(j-1),
    sought as a distance from a_j so that no digits cancel; the eigenvector is u / (root - a).
    """
    n = len(rows)
    balance = y.mean(0) * (1 - y.mean(0))
    delta = gap(rows.coordinates, y)
    u = (1 - 2 * balance).sqrt() * delta
    diagonal = 2 * rows.spread / n
    # A coordinate of exactly zero would leave its own axis out of the formula.
    u = torch.where(u.abs() < 1e-12 * u.norm(dim=0), 1e-12 * u.norm(dim=0), u)
    k = min(k, int((diagonal > RANK**2 * diagonal[0]).sum()))
    apart = (diagonal[:k, None] - diagonal)[:, :, None]
    between = (diagonal[: k - 1] - diagonal[1:k])[:, None].expand(-1, u.shape[1])
    above = torch.cat([(u**2).sum(0)[None], between])
    low, high = torch.zeros_like(above), above
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        too_low = (u**2 / (middle[:, None] + apart)).sum(1) > 1
        low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
    vectors: Tensor = u / (high[:, None] + apart)
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    return orthonormal(torch.einsum("ad,jac->cdj", rows.axes, vectors))

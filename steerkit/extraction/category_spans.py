"""Subspaces of several mean differences: plain, and as the least-squares eraser reads them."""

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.extraction.covariance import Shrunk
from steerkit.extraction.spans import SPANS, Labelling, leading, orthonormal
from steerkit.extraction.training import Training


class MeanDifferences:
    """What the mean differences of the categories span; one category spans a line.

    A smaller k keeps their leading singular vectors (uncentred), each category counting the
    same. Its first axis is then no category's own.

    Source: Marks and Tegmark 2023 (arXiv:2310.06824) for one category; several directions of
    one behaviour, Wollschläger et al. 2025 (arXiv:2502.17420).
    """

    estimates = "span of delta_c = E[x | positive, c] - E[x | negative, c] over categories c"

    def __call__(
        self, rows: Training, labelling: Labelling, k: int
    ) -> Float[Tensor, "column d_model axis"]:
        """One product for all labellings, then small decompositions."""
        return leading(labelling.differences(rows.x), k)[0]


SPANS.register("mean_difference")(MeanDifferences())


class LeaceSpan:
    """What an eraser of the label in every category reads: span of cov^-1 delta_c.

    Rows with constant coordinates here have the same mean on both sides of every category, as
    far as whitened covariance goes, so no linear probe finds the label in any. Axes come by
    their correlation with the concept in whitened space and are then made orthonormal. The
    covariance is that of all rows, shrunk by Ledoit and Wolf.

    Source: Belrose et al. 2023 (arXiv:2306.03819).
    """

    estimates = "span of cov^-1 delta_c, delta_c the mean difference of category c"

    def __call__(
        self, rows: Training, labelling: Labelling, k: int
    ) -> Float[Tensor, "column d_model axis"]:
        """One factorisation for all labellings."""
        shrunk = Shrunk.of(rows)
        apart = torch.einsum("ad,kdc->kac", rows.axes, labelling.differences(rows.x))
        inside = shrunk.inside[:, None]
        whitened = inside**-0.5 * apart
        left = leading(whitened, k)[0]
        read: Tensor = inside**-0.5 * left
        return orthonormal(torch.einsum("ad,kac->kdc", rows.axes, read))


SPANS.register("leace")(LeaceSpan())

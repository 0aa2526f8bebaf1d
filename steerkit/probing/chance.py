"""Random directions that go through the probe's own choice of site."""

from collections.abc import Sequence

import numpy as np
import torch

from steerkit.extraction.labelled import Labelled
from steerkit.extraction.ranking import auc_columns
from steerkit.probing.nested import Outer
from steerkit.statistics import Floats


def random_directions(
    data: Labelled, outers: Sequence[Outer], n: int, *, shaped: bool, seed: int
) -> Floats:
    """`[draw]`, held-out AUC of a random direction at the site where it separates best.

    A draw is one direction at every site. On the training rows of each outer fold its sign and
    its site are chosen (the largest |AUC - 1/2|); the outer fold says what that is worth.

    Args:
        data: one row a prompt.
        outers: the folds.
        n: draws.
        shaped: by the covariance of the rows (random mixtures of them), else isotropic.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    n_sites, y = len(data.acts.sites), data.labels
    inside, right = np.zeros((2, len(outers), n_sites, n))
    pairs = np.zeros(len(outers))
    for site in range(n_sites):
        x = data.rows(site)
        wide = len(x) if shaped else x.shape[1]
        directions = torch.randn(wide, n, generator=generator, dtype=torch.float64)
        if shaped:
            directions = (x - x.mean(0)).T @ directions
        scores = (x @ directions).numpy()
        for k, outer in enumerate(outers):
            inside[k, site] = auc_columns(scores[outer.train], y[outer.train])[0]
            value, compared = auc_columns(scores[outer.test], y[outer.test])
            pairs[k] = compared[0]
            right[k, site] = np.where(compared > 0, value * compared, 0)
    best = np.abs(inside - 0.5).argmax(1)[:, None]
    turned = np.take_along_axis(inside, best, 1)[:, 0] < 0.5
    found = np.take_along_axis(right, best, 1)[:, 0]
    found = np.where(turned, pairs[:, None] - found, found)
    return found.sum(0) / pairs.sum()

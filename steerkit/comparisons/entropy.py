"""What token shifts go with once the base model's own uncertainty is allowed for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from steerkit.comparisons.forced import ForcedTokens
from steerkit.extraction import column_probes
from steerkit.statistics import Estimate, Floats, percentiles, row_draws

INVERSE_PENALTY = 10.0
"""Weak ridge: log-odds stay finite where every token of a kind has shifted."""


@dataclass(frozen=True)
class LogOdds:
    """Change of the log-odds of a shift with one predictor, the others held equal.

    Attributes:
        name: `entropy of base`, or what the column says.
        value: log-odds per nat, or of 1 against 0; the interval resamples groups and refits.
    """

    name: str
    value: Estimate

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {"name": self.name, **self.value.to_json()}


def adjusted(
    tokens: ForcedTokens,
    columns: Mapping[str, Floats],
    *,
    n_resamples: int = 200,
    seed: int = 0,
) -> tuple[LogOdds, ...]:
    """Logistic regression of shifted (rank above 3) on base's entropy and further columns.

    A high rank is likelier where base is uncertain; what is left of a column's log-odds is what
    entropy does not explain. Empty where no token has shifted or all have; columns that do not
    vary are left out.
    """
    y = tokens.shifted.astype(np.float64)
    if y.min() == y.max():
        return ()
    named = {"entropy of base": tokens.entropy, **columns}
    named = {k: v for k, v in named.items() if np.ptp(v) > 0}
    units = {k: "log-odds per nat" if k == "entropy of base" else "log-odds" for k in named}
    x = np.stack(list(named.values()), 1)
    centred = x - x.mean(0)
    # In principal axes of unit variance, where the fit converges fast; put back at the end.
    _, size, axes = np.linalg.svd(centred, full_matrices=False)
    keep = size > 1e-9 * size[0]
    back = (axes[keep] / size[keep, None] * np.sqrt(len(x))).T
    draws = np.hstack(
        [np.ones((len(y), 1)), row_draws(tokens.groups, n_resamples=n_resamples, seed=seed)]
    )
    labels = torch.from_numpy(np.repeat(y[:, None], draws.shape[1], 1))
    c = torch.full((draws.shape[1],), INVERSE_PENALTY, dtype=torch.float64)
    w, _ = column_probes.fit(
        torch.from_numpy(centred @ back),
        labels,
        c,
        weights=torch.from_numpy(draws),
        tolerance=1e-6,
    )
    found = back @ w.numpy()
    # A resample without a shifted token, or without another, says nothing.
    hits = y @ draws
    found = found[:, (hits > 0) & (hits < draws.sum(0))]
    n = len(set(tokens.groups))
    made = []
    for name, values in zip(named, found, strict=True):
        low, high = percentiles(values[1:], n) if len(values) > 1 else (np.nan, np.nan)
        made.append(LogOdds(name, Estimate(float(values[0]), low, high, n, units[name])))
    return tuple(made)

"""Was it erased? An eraser fitted, probed and tested on three disjoint splits."""

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steerkit.activations import Activations
from steerkit.errors import ActivationError
from steerkit.extraction.eraser import Eraser
from steerkit.extraction.labelled import Labelled
from steerkit.extraction.methods import METHODS
from steerkit.extraction.ranking import fold_auc
from steerkit.extraction.training import gap
from steerkit.site import Site
from steerkit.statistics import Estimate, grouped_folds

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ErasureRow:
    """What fresh probes read after one edit.

    Attributes:
        edit: what was done to the rows.
        linear: AUC on the test split of a logistic probe fitted on the probe split.
        nonlinear: the same of a kernel machine (radial basis functions).
        change: mean squared change of the test rows as a fraction of their variance.
    """

    edit: str
    linear: Estimate
    nonlinear: Estimate
    change: float


@dataclass(frozen=True)
class Erasure:
    """Fresh probes before and after erasing, on rows that neither eraser nor probe has seen.

    Attributes:
        rows: untouched; erased; and, for comparison, without the mean-difference direction
            (projected onto its mean along it).
        eraser: the one that was fitted, on the first split alone.
        n_rows: rows fitted on, probed on, tested on.
        floor: AUC at most to be expected of the best linear probe, for what an eraser fitted on
            so few rows leaves by chance: class means still sqrt(d / n_pos + d / n_neg) standard
            deviations apart. Where it is far above 1/2, capture more prompts.
    """

    rows: tuple[ErasureRow, ...]
    eraser: Eraser
    n_rows: tuple[int, int, int]
    floor: float

    def __getitem__(self, edit: str) -> ErasureRow:
        return next(row for row in self.rows if row.edit == edit)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "concept": self.eraser.concept,
            "site": str(self.eraser.site),
            "rank": self.eraser.rank,
            "shrinkage": self.eraser.shrinkage,
            "n_rows": list(self.n_rows),
            "floor": self.floor,
            "rows": [
                {
                    "edit": row.edit,
                    "linear": row.linear.to_json(),
                    "nonlinear": row.nonlinear.to_json(),
                    "change": row.change,
                }
                for row in self.rows
            ],
        }

    def table(self) -> list[dict[str, str]]:
        """One row an edit, in words."""
        return [
            {
                "edit": row.edit,
                "linear probe, AUC": str(row.linear),
                "kernel probe, AUC": str(row.nonlinear),
                "change": f"{row.change:.3g}",
            }
            for row in self.rows
        ]

    @property
    def headline(self) -> str:
        """What was fitted, on how much, and what chance leaves."""
        fitted, probed, tested = self.n_rows
        return (
            f"{self.eraser.concept} at {self.eraser.site}: eraser of rank {self.eraser.rank} "
            f"fitted on {fitted} rows, probes on {probed}, tested on {tested}; chance "
            f"leaves an AUC of up to about {self.floor:.2f}"
        )

    def summary(self) -> str:
        """What was erased, in a few lines."""
        lines = [
            f"  {row.edit:24s} linear {row.linear}, kernel {row.nonlinear}, change {row.change:.3g}"
            for row in self.rows
        ]
        return "\n".join([self.headline, *lines])

    def _repr_html_(self) -> str:
        table = self.table()
        head = "".join(f"<th>{escape(name)}</th>" for name in table[0])
        body = "".join(
            f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row.values())}</tr>"
            for row in table
        )
        return f"<table><caption>{escape(self.headline)}</caption><tr>{head}</tr>{body}</table>"

    def __repr__(self) -> str:
        return self.summary()


def check_erasure(acts: Activations, site: Site | str | int, *, seed: int = 0) -> Erasure:
    """Fit an eraser on a third of the groups, probes on another, and test on the last.

    On rows that the eraser itself was fitted on, probes fall below chance for no reason but
    that: their class means were made equal exactly, so a held-out part has them reversed.

    Args:
        acts: labelled activations.
        site: which of their sites.
        seed: of the splits and resampling.

    Raises:
        ActivationError: fewer than three groups with either label, and what `Eraser.fit` raises.
        DirectionError: class means that are the same.
    """
    data = Labelled.of(acts)
    folds = grouped_folds(data.row_labels, data.row_groups, n_folds=3, seed=seed)
    if len(folds) < 3:
        raise ActivationError(
            "three disjoint splits need at least three groups with each label, as groups are "
            "never split; give prompts of more templates or pairs"
        )
    fit, probe, test = (rows for _, rows in folds)
    eraser = Eraser.fit(acts.select(fit.tolist()), site)
    x = acts.at(site).to(torch.float64)
    y = torch.from_numpy(data.row_labels)
    groups = np.asarray(data.row_groups)
    unit = gap(x[fit], y[fit][:, None])[:, 0]
    unit = unit / unit.norm()

    def projected(rows: Tensor) -> Tensor:
        return rows - ((rows - eraser.mean) @ unit)[:, None] * unit

    edits: dict[str, Callable[[Tensor], Tensor]] = {
        "untouched": lambda rows: rows,
        "erased": eraser,
        "mean difference ablated": projected,
    }
    variance = float((x[test] - x[test].mean(0)).square().sum(1).mean())
    found = []
    for name, edit in edits.items():
        seen, new = edit(x[probe]), edit(x[test])
        scores = {
            "linear": _linear(seen, y[probe], groups[probe].tolist(), new, seed),
            "nonlinear": _kernel(seen, y[probe], new),
        }
        held = {
            kind: fold_auc(
                s, y[test].numpy(), np.zeros(len(test), np.int64), groups[test].tolist(), seed=seed
            )
            for kind, s in scores.items()
        }
        change = float((new - x[test]).square().sum(1).mean()) / variance
        found.append(ErasureRow(name, held["linear"], held["nonlinear"], change))
    n_positive = int(y[fit].sum())
    apart = (x.shape[1] / n_positive + x.shape[1] / (len(fit) - n_positive)) ** 0.5
    floor = NormalDist().cdf(apart / 2**0.5)
    return Erasure(tuple(found), eraser, (len(fit), len(probe), len(test)), floor)


def _linear(x: Tensor, labels: Tensor, groups: list[str], new: Tensor, seed: int) -> Floats:
    w = METHODS["logistic"](x, labels, groups, seed=seed)
    return (new @ w).numpy().astype(np.float64)


def _kernel(x: Tensor, labels: Tensor, new: Tensor) -> Floats:
    """Decision values of a support vector machine with radial basis functions."""
    from sklearn.svm import SVC

    size = (x - x.mean(0)).square().mean().sqrt()
    a, b = (((rows - x.mean(0)) / size).numpy() for rows in (x, new))
    machine = SVC(kernel="rbf", C=1.0, gamma=1.0 / x.shape[1]).fit(a, labels.numpy())
    return np.asarray(machine.decision_function(b), dtype=np.float64)

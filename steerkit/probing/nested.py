"""Nested selection: what is chosen on inner folds is scored once on the outer fold."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steerkit.extraction.labelled import Labelled
from steerkit.extraction.ranking import auc_columns
from steerkit.probing.candidates import Candidate, Recipe, Turned, scaled, spanned
from steerkit.statistics import Floats

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Outer:
    """One outer fold: rows to score, rows to fit on, and the inner splits of the latter."""

    test: Rows
    train: Rows
    inner: tuple[tuple[Rows, Rows], ...]


def crossed(fold_of: Rows) -> tuple[Outer, ...]:
    """Each fold in turn is scored; the others, each in turn, are the inner folds.

    The fit that leaves out two folds serves both of them, so K folds need K (K + 1) / 2 fits.
    """
    n = int(fold_of.max()) + 1

    def without(*folds: int) -> Rows:
        return np.flatnonzero(~np.isin(fold_of, folds))

    return tuple(
        Outer(
            np.flatnonzero(fold_of == k),
            without(k),
            tuple(
                (without(*sorted((k, j))), np.flatnonzero(fold_of == j)) for j in range(n) if j != k
            ),
        )
        for k in range(n)
    )


@dataclass(frozen=True)
class Choice:
    """What one outer fold chose.

    Attributes:
        candidate: the site, method and penalty of highest inner AUC.
        inner: that AUC: optimistic, as the best of many.
        held_out: its AUC on the outer fold.
    """

    candidate: Candidate
    inner: float
    held_out: float

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {**self.candidate.to_json(), "inner": self.inner, "held_out": self.held_out}


@dataclass(frozen=True, eq=False)
class Trials:
    """AUCs of every candidate on inner and outer folds, under every labelling.

    Attributes:
        candidates: the earliest site and the strongest penalty first.
        outers: the folds.
        inner: `[outer candidate labelling]`, AUC over the inner folds, compared within each.
        right: `[outer candidate labelling]`, pairs in order on the outer fold.
        compared: `[outer labelling]`, pairs there.
        inner_scores: `[outer candidate row]`, of the first labelling; NaN where not scored.
        scores: `[outer candidate row]`, likewise on the outer fold.
    """

    candidates: tuple[Candidate, ...]
    outers: tuple[Outer, ...]
    inner: Floats
    right: Floats
    compared: Floats
    inner_scores: Floats
    scores: Floats

    @property
    def chosen(self) -> Rows:
        """`[outer labelling]`, the candidate of highest inner AUC; of equals the first."""
        return self.inner.round(12).argmax(1)

    @property
    def auc(self) -> Floats:
        """`[labelling]`, held-out AUC of the selecting procedure, compared within outer folds."""
        picked = np.take_along_axis(self.right, self.chosen[:, None], 1)[:, 0]
        return picked.sum(0) / self.compared.sum(0)

    @property
    def naive(self) -> Floats:
        """`[labelling]`, the highest held-out AUC of any candidate: what not to report."""
        return (self.right.sum(0) / self.compared.sum(0)).max(0)

    @property
    def choices(self) -> tuple[Choice, ...]:
        """What every outer fold chose under the first labelling."""
        return tuple(
            Choice(
                self.candidates[c],
                float(self.inner[k, c, 0]),
                float(self.right[k, c, 0] / self.compared[k, 0])
                if self.compared[k, 0]
                else float("nan"),
            )
            for k, c in enumerate(self.chosen[:, 0])
        )

    def held_out(self) -> Floats:
        """`[row]`, score of each row by the candidate that its outer fold chose."""
        found = np.full(self.scores.shape[2], np.nan)
        for k, outer in enumerate(self.outers):
            found[outer.test] = self.scores[k, self.chosen[k, 0], outer.test]
        return found


def run(
    data: Labelled,
    labels: NDArray[np.int64],
    outers: Sequence[Outer],
    recipes: Sequence[Recipe],
    *,
    exact: bool,
    seed: int = 0,
    sites: Iterable[int] | None = None,
) -> Trials:
    """Fit and score every candidate on every inner and outer split, under every labelling.

    Args:
        data: one row a prompt.
        labels: `[row labelling]`, 1 or 0.
        outers: the folds.
        recipes: methods with their penalties.
        exact: how far fits are taken (`Recipe.fit`).
        seed: for methods that draw.
        sites: numbers of the sites in order, such as a progress bar over them.
    """
    n, n_labels = labels.shape
    n_sites = len(data.acts.sites)
    offsets = np.cumsum([0, *(len(recipe.penalties) for recipe in recipes)])
    each = int(offsets[-1])
    shape = (len(outers), n_sites * each, n_labels)
    inner_right, right = np.zeros(shape), np.zeros(shape)
    inner_pairs, pairs = np.zeros((len(outers), n_labels)), np.zeros((len(outers), n_labels))
    inner_scores = np.full((*shape[:2], n), np.nan)
    scores = inner_scores.copy()
    fits = _fits(outers)
    for site in range(n_sites) if sites is None else sites:
        whole = data.rows(site)
        x, width = spanned(whole), whole.shape[1]
        for train, roles in fits:
            rows = Turned(x[train], tuple(data.groups[i] for i in train), width)
            y = torch.from_numpy(labels[train])
            for number, recipe in enumerate(recipes):
                w = recipe.fit(rows, y, exact=exact, seed=seed)
                start = site * each + int(offsets[number])
                here = slice(start, start + len(recipe.penalties))
                for k, is_inner, test in roles:
                    found = (scaled(rows, x[test]) @ w).numpy()
                    value, compared = auc_columns(
                        found, np.tile(labels[test], len(recipe.penalties))
                    )
                    value = np.where(compared > 0, value * compared, 0).reshape(-1, n_labels)
                    first = found.reshape(len(test), -1, n_labels)[:, :, 0].T
                    into = (inner_right, inner_scores) if is_inner else (right, scores)
                    into[0][k, here] += value
                    into[1][k, here, test] = first.T
                    if site == 0 and number == 0:
                        (inner_pairs if is_inner else pairs)[k] += compared[:n_labels]
    candidates = tuple(
        Candidate(site, recipe.method, penalty)
        for site in data.acts.sites
        for recipe in recipes
        for penalty in recipe.penalties
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        inner = inner_right / inner_pairs[:, None]
    return Trials(candidates, tuple(outers), inner, right, pairs, inner_scores, scores)


def _fits(outers: Sequence[Outer]) -> list[tuple[Rows, list[tuple[int, bool, Rows]]]]:
    """Every set of rows to fit on, once, with the folds that its fit is scored on."""
    found: dict[bytes, tuple[Rows, list[tuple[int, bool, Rows]]]] = {}
    for k, outer in enumerate(outers):
        for is_inner, train, test in _splits(outer):
            found.setdefault(train.tobytes(), (train, []))[1].append((k, is_inner, test))
    return list(found.values())


def _splits(outer: Outer) -> Iterator[tuple[bool, Rows, Rows]]:
    yield False, outer.train, outer.test
    for train, test in outer.inner:
        yield True, train, test

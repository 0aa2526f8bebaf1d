"""The arms of a probe with controls: what all of them share, and each of them."""

import numpy as np
from numpy.typing import NDArray

from steerkit.extraction.labelled import Labelled
from steerkit.extraction.ranking import fold_auc
from steerkit.extraction.text_baseline import text_scores
from steerkit.probing import nested
from steerkit.probing.candidates import Recipe
from steerkit.probing.chance import random_directions
from steerkit.probing.compared import Arm, auc_difference
from steerkit.probing.length import length_scores
from steerkit.probing.nested import Choice, Outer
from steerkit.probing.scored import Scored, accuracy
from steerkit.statistics import Floats, Null, null, permutations

ITERATIVE = ("logistic", "svm")
"""Methods whose null is fitted to a looser tolerance."""


class Arms:
    """Everything that is scored on the same folds, with the same resamples and recipes."""

    def __init__(
        self,
        data: Labelled,
        outers: tuple[Outer, ...],
        fold_of: NDArray[np.int64],
        draws: Floats,
        chosen: tuple[Recipe, ...],
        seed: int,
    ) -> None:
        self.data, self.outers, self.fold_of = data, outers, fold_of
        self.draws, self.chosen, self.seed = draws, chosen, seed

    def scored(self, data: Labelled) -> Scored:
        """The selecting procedure on some activations of the prompts, fitted exactly."""
        y = self.data.labels
        trials = nested.run(data, y[:, None], self.outers, self.chosen, exact=True, seed=self.seed)
        return Scored.of(trials, y)

    def arm(
        self,
        name: str,
        own: Scored,
        scores: Floats,
        said: NDArray[np.bool_],
        choices: tuple[Choice, ...] = (),
    ) -> Arm:
        """A control beside the probe."""
        y, groups = self.data.labels, self.data.groups
        return Arm(
            name,
            fold_auc(scores, y, self.fold_of, groups, draws=self.draws),
            accuracy(said, y, groups),
            auc_difference(own.scores, scores, y, (self.fold_of, self.fold_of), self.draws, groups),
            choices,
        )

    def text(self, own: Scored) -> Arm | None:
        """The words alone, on the same folds."""
        scores = text_scores(self.data.prompts, self.data.labels, self._folds)
        return None if scores is None else self.arm("words alone", own, scores, scores > 0)

    def length(self, own: Scored) -> Arm:
        """The length alone, on the same folds."""
        scores = length_scores(self.data.prompts, self.data.labels, self._folds)
        return self.arm("length alone", own, scores, scores > 0)

    @property
    def _folds(self) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        return [(outer.train, outer.test) for outer in self.outers]

    def permuted(self, n: int, observed: float, *, progress: bool) -> Null:
        """The null of the whole procedure; the observed labels go through it in the same way."""
        name = "labels permuted"
        if not n:
            return null(name, observed, [])
        data = self.data
        rng = np.random.default_rng(self.seed)
        exchanged = permutations(data.labels, data.groups, n, rng, within=self.fold_of)
        trials = nested.run(
            data,
            np.hstack([data.labels[:, None], exchanged]),
            self.outers,
            self.chosen,
            exact=not any(recipe.method in ITERATIVE for recipe in self.chosen),
            seed=self.seed,
            sites=_bar(len(data.acts.sites), progress),
        )
        return null(name, trials.auc[0], trials.auc[1:])

    def random(self, n: int, observed: float, *, shaped: bool) -> Null:
        """Random directions, isotropic or shaped by the covariance of the rows."""
        name = "random directions, data-shaped" if shaped else "random directions"
        if not n:
            return null(name, observed, [])
        found = random_directions(self.data, self.outers, n, shaped=shaped, seed=self.seed)
        return null(name, observed, found)


def _bar(n: int, progress: bool):  # type: ignore[no-untyped-def]
    from tqdm.auto import tqdm

    return tqdm(range(n), desc="probe", unit="site", disable=not progress)

"""Leave one category out: does what was read in the others hold in this one?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerkit.errors import ActivationError
from steerkit.extraction.labelled import Labelled
from steerkit.extraction.ranking import fold_auc
from steerkit.extraction.text_baseline import text_scores
from steerkit.probing import nested
from steerkit.probing.candidates import Recipe
from steerkit.probing.compared import State, auc_difference
from steerkit.probing.nested import Choice, Outer
from steerkit.probing.scored import Scored, accuracy
from steerkit.statistics import Estimate, Floats, grouped_folds


@dataclass(frozen=True)
class LeftCategory:
    """One category, scored by what was chosen and fitted on the others.

    Attributes:
        name: of the category.
        auc: of its prompts.
        n: how many they are.
        choice: the site, method and penalty that the other categories chose.
    """

    name: str
    auc: Estimate
    n: int
    choice: Choice

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "name": self.name,
            "auc": self.auc.to_json(),
            "n": self.n,
            "choice": self.choice.to_json(),
        }


@dataclass(frozen=True)
class LeftOut:
    """Leave-one-category-out, pooled and by category.

    Attributes:
        auc: pooled, comparing within categories. Its interval is about new prompts of these
            categories, not about new categories.
        accuracy: at probability 0.5, Platt-fitted on the other categories.
        difference: the probe's AUC on the same prompts, within folds, less `auc`.
        categories: one by one.
        words: what the words alone reach, fitted on the other categories too: a category that
            was left out still shares words with them. None where prompts have no words.
        over_words: `auc` less that.
    """

    auc: Estimate
    accuracy: Estimate
    difference: Estimate
    categories: tuple[LeftCategory, ...]
    words: Estimate | None = None
    over_words: Estimate | None = None

    @property
    def state(self) -> State:
        """`beaten` (held): the interval is above 1/2. Else `matched` (fell to chance) where it
        is surely below the probe's within categories, `undecided` where that is not sure.
        """
        if self.auc.low > 0.5:
            return "beaten"
        return "matched" if self.difference.low > 0 else "undecided"

    @property
    def at_chance(self) -> tuple[str, ...]:
        """Categories whose own interval reaches down to 1/2."""
        return tuple(c.name for c in self.categories if not c.auc.low > 0.5)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "auc": self.auc.to_json(),
            "accuracy": self.accuracy.to_json(),
            "difference": self.difference.to_json(),
            "categories": [c.to_json() for c in self.categories],
            "words": None if self.words is None else self.words.to_json(),
            "over_words": None if self.over_words is None else self.over_words.to_json(),
        }


def leave_out(
    data: Labelled,
    recipes: Sequence[Recipe],
    within: tuple[Floats, NDArray[np.int64], Floats],
    *,
    n_folds: int,
    seed: int,
) -> LeftOut:
    """Select and fit on all categories but one, score that one, for each.

    Prompts that share a group with the left-out category are not fitted on either. Prompts
    without a category are fitted on, never left out.

    Args:
        data: one row a prompt.
        recipes: methods with their penalties.
        within: the probe's own held-out scores, the fold of each row, and `row_draws`.
        n_folds: outer folds of the probe; selection here uses one fewer, grouped.
        seed: of folds.

    Raises:
        ActivationError: fewer than two categories, one with a single class, or one without
            which too few groups are left.
    """
    problem = unfit(data, n_folds=n_folds)
    if problem:
        raise ActivationError(problem)
    category = np.array([p.category for p in data.prompts])
    groups = np.array(data.groups)
    names = sorted(set(category) - {""})
    outers = []
    for name in names:
        test = np.flatnonzero(category == name)
        train = np.flatnonzero(~np.isin(groups, groups[test]))
        inner = grouped_folds(
            data.labels[train], groups[train].tolist(), n_folds=n_folds - 1, seed=seed
        )
        outers.append(Outer(test, train, tuple((train[a], train[b]) for a, b in inner)))
    trials = nested.run(data, data.labels[:, None], outers, recipes, exact=True, seed=seed)
    found = Scored.of(trials, data.labels)
    kept = np.flatnonzero(category != "")
    y, own = data.labels[kept], groups[kept].tolist()
    code = np.unique(category, return_inverse=True)[1][kept]
    scores, fold_of, draws = within
    by_category = []
    for name, choice in zip(names, found.choices, strict=True):
        rows = np.flatnonzero(category == name)
        auc = fold_auc(
            found.scores[rows], data.labels[rows], np.zeros(len(rows), np.int64),
            groups[rows].tolist(), seed=seed,
        )  # fmt: skip
        by_category.append(LeftCategory(name, auc, len(rows), choice))
    said = text_scores(data.prompts, data.labels, [(one.train, one.test) for one in outers])
    words = over = None
    if said is not None:
        words = fold_auc(said[kept], y, code, own, draws=draws[kept])
        over = auc_difference(found.scores[kept], said[kept], y, (code, code), draws[kept], own)
    return LeftOut(
        fold_auc(found.scores[kept], y, code, own, draws=draws[kept]),
        accuracy(found.probabilities[kept] > 0.5, y, own),
        auc_difference(
            scores[kept], found.scores[kept], y, (fold_of[kept], code), draws[kept], own
        ),
        tuple(by_category),
        words,
        over,
    )


def unfit(data: Labelled, *, n_folds: int) -> str:
    """Why categories cannot be left out, and what to do; empty where they can be."""
    category = np.array([p.category for p in data.prompts])
    names = sorted(set(category) - {""})
    if len(names) < 2:
        return (
            f"leaving categories out needs at least 2 of them; these prompts have {len(names)}: "
            "give prompts a category, or categories=False"
        )
    sides = {name: set(data.labels[category == name].tolist()) for name in names}
    single = [name for name, labels in sides.items() if len(labels) < 2]
    if single:
        side = "positive" if sides[single[0]] == {1} else "negative"
        return (
            f"{len(single)} of {len(names)} categories have one class, such as '{single[0]}' "
            f"({side} only), so nothing can be told apart in them; give each category both "
            "classes, or categories=False"
        )
    groups = np.array(data.groups)
    for name in names:
        train = ~np.isin(groups, groups[category == name])
        for label, side in ((1, "positive"), (0, "negative")):
            n = len(set(groups[train & (data.labels == label)].tolist()))
            if n < n_folds - 1:
                return (
                    f"without category '{name}' {n} {side} groups are left to choose and fit on, "
                    f"{n_folds - 1} inner folds need {n_folds - 1}; give groups that do not span "
                    "categories, more prompts, a smaller n_folds, or categories=False"
                )
    return ""

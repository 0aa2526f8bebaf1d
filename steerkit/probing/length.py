"""How far the length of a prompt goes: the simplest thing that a mean over tokens gives away."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steerkit.prompts import Prompt
from steerkit.statistics import Floats


def length_scores(
    prompts: Sequence[Prompt],
    labels: NDArray[np.int64],
    folds: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> Floats:
    """Held-out log-odds of each prompt from its numbers of characters and words, in logarithms.

    Args:
        prompts: their system, text and answer count.
        labels: 1 or 0.
        folds: (train, test) rows; scale and weights are fitted on the former.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    texts = [" ".join(filter(None, (p.system, p.text, p.answer))) for p in prompts]
    counts = np.log1p([[len(text), len(text.split())] for text in texts])
    scores = np.zeros(len(texts))
    for train, test in folds:
        probe = make_pipeline(StandardScaler(), LogisticRegression())
        scores[test] = probe.fit(counts[train], labels[train]).decision_function(counts[test])
    return scores

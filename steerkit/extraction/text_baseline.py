"""How far the words alone go: TF-IDF and logistic regression on the same folds."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steerkit.prompts import Prompt

Floats = NDArray[np.float64]


def text_scores(
    prompts: Sequence[Prompt],
    labels: NDArray[np.int64],
    folds: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> Floats | None:
    """Held-out log-odds of each prompt from its words and word pairs.

    Vocabulary, weights and classifier are fitted on each fold's training prompts only.
    None where a training fold has no words at all.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    texts = [" ".join(filter(None, (p.system, p.text, p.answer))) for p in prompts]
    scores = np.zeros(len(texts))
    for train, test in folds:
        words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
        try:
            seen = words.fit_transform([texts[i] for i in train])
        except ValueError:  # scikit-learn's word for an empty vocabulary
            return None
        probe = LogisticRegression(C=10.0, max_iter=1000).fit(seen, labels[train])
        scores[test] = probe.decision_function(words.transform([texts[i] for i in test]))
    return scores

"""The length baseline is fitted on training folds only and reads characters and words."""

import numpy as np

from steerkit.probing.length import length_scores
from steerkit.prompts import Prompt
from steerkit.statistics import auc


def test_what_is_longer_is_told_and_the_sign_comes_from_the_training_rows():
    prompts = [Prompt("word " * (3 + i % 5 + 4 * (i % 2))) for i in range(60)]
    labels = np.arange(60) % 2
    train, test = np.arange(40), np.arange(40, 60)
    scores = length_scores(prompts, labels, [(train, test)])
    assert auc(scores[test], labels[test]) > 0.9
    turned = labels.copy()
    turned[train] = 1 - turned[train]
    backwards = length_scores(prompts, turned, [(train, test)])
    assert auc(backwards[test], labels[test]) < 0.1
    assert (scores[train] == 0).all(), "only held-out rows are scored"


def test_system_and_answer_count():
    prompts = [Prompt("a", answer="b" * (1 + 30 * (i % 2))) for i in range(20)]
    labels = np.arange(20) % 2
    rows = np.arange(20)
    assert auc(length_scores(prompts, labels, [(rows, rows)]), labels) == 1.0

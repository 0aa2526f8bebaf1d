"""The words alone: what a topic gives away, and the known failure of splitting pairs."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from steerkit.activations import Activations
from steerkit.extraction import extract
from steerkit.extraction.ranking import fold_auc
from steerkit.extraction.text_baseline import text_scores
from steerkit.prompts import Prompt
from steerkit.statistics import Estimate, grouped_folds

NOUNS = "cat dog bird fish horse goat duck frog hen pig cow bee ant fox owl".split()


def baseline(texts: list[str], labels: list[int], groups: list[str]) -> Estimate:
    y = np.array(labels)
    folds = grouped_folds(y, groups)
    fold_of = np.zeros(len(y), dtype=np.int64)
    for i, (_, test) in enumerate(folds):
        fold_of[test] = i
    scores = text_scores([Prompt(t) for t in texts], y, folds)
    assert scores is not None
    return fold_auc(scores, y, fold_of, groups)


def statements(n: int = 120) -> tuple[list[str], list[int], list[str]]:
    """Pairs of an arbitrary claim and its negation; which of them is true is arbitrary too."""
    rng = np.random.default_rng(0)
    texts, labels, groups = [], [], []
    for i in range(n):
        a, b = rng.choice(NOUNS, 2, replace=False)
        true = int(rng.integers(0, 2))
        texts += [f"number {i} says the {a} chased the {b}", f"number {i} denies the {a} and {b}"]
        labels += [true, 1 - true]
        groups += [f"pair{i}"] * 2
    return texts, labels, groups


def test_a_probe_of_a_topic_is_exposed(make: Callable[..., Activations]) -> None:
    """Activations separate; so do the words, and the direction carries both numbers."""
    topics = [f"a story about {'war' if i < 40 else 'cake'} number {i}" for i in range(80)]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 8, generator=generator)
    x[:40, 0] += 4
    scores = extract(make(x[:40], x[40:], texts=topics), progress=False)[0].scores
    assert scores is not None and scores.text is not None
    assert scores.auc.value > 0.95 and scores.text.value > 0.95


def test_lexically_balanced_prompts_leave_words_at_chance(
    plant: Callable[..., Activations],
) -> None:
    scores = extract(plant(100, size=4.0), progress=False)[0].scores
    assert scores is not None and scores.text is not None
    assert scores.auc.value > 0.9
    assert scores.text.low < 0.5 < scores.text.high


def test_splitting_pairs_by_statement_drives_the_baseline_below_chance() -> None:
    """Known failure: the mate with the opposite label sits in the training folds."""
    texts, labels, groups = statements()
    whole = baseline(texts, labels, groups)
    split = baseline(texts, labels, [f"statement{i}" for i in range(len(texts))])
    assert whole.low < 0.5 < whole.high
    assert split.high < 0.5


def test_prompts_without_words_have_no_baseline() -> None:
    y = np.array([1, 0] * 4)
    folds = grouped_folds(y, [f"g{i}" for i in range(8)])
    assert text_scores([Prompt("?!")] * 8, y, folds) is None


def test_system_and_answer_are_part_of_the_text() -> None:
    prompts = [Prompt("same", system="be kind" if i % 2 else "be rude") for i in range(20)]
    y = np.arange(20) % 2
    folds = grouped_folds(y, [f"g{i}" for i in range(20)])
    scores = text_scores(prompts, y, folds)
    assert scores is not None and (scores[y == 1] > 0).all() and (scores[y == 0] < 0).all()


@pytest.mark.parametrize("method", ["mean_difference", "lda"])
def test_one_baseline_serves_every_site(plant: Callable[..., Activations], method: str) -> None:
    found = extract(plant(30, sites=3), method, progress=False)
    texts = {d.scores.text for d in found if d.scores}
    assert len(texts) == 1 and None not in texts

"""Faults of published polarity probing (arXiv:2511.21737) that the default does not have."""

from typing import Any

import numpy as np
import pytest
import torch

from steerkit.datasets.swapped import swapped
from steerkit.extraction.ccs import fit_answers
from steerkit.extraction.polarity import polarity
from steerkit.extraction.text_baseline import text_scores
from steerkit.prompts import Contrast, Prompt
from steerkit.statistics import auc, grouped_folds
from steerkit.suites.examinations.polarity import ANSWERS, _answer, _pairs
from steerkit.suites.polar import read_polarity

N = 24
GROUPS = tuple(f"g{i // 2}" for i in range(N))


@pytest.mark.parametrize(
    ("says_yes", "says_no", "index"), [(0.5, 0.5, 0.5), (1.0, 1.0, 2.0), (1.0, 0.0, 1.0)]
)
def test_an_ideal_polar_consistency_of_a_probe_that_knows_nothing_is_no_yes(
    says_yes: float, says_no: float, index: float
) -> None:
    """A probe at one half, one that affirms everything and one that affirms either statement.

    All have the ideal polar consistency of 0 (arXiv:2511.21737); none gets a yes.
    """
    yes, no = np.full(N, says_yes), np.full(N, says_no)
    found = polarity(yes, no, yes, no, labels=np.ones(N), groups=GROUPS)
    assert found.consistency.value == 0
    assert found.contradiction.value == pytest.approx(index)
    assert _answer(found, [], 0.001) == "no"
    assert "contradiction" in found.summary() and "consistency" in found.summary()


def test_the_word_not_alone_is_seen_by_the_words_arm() -> None:
    """Half of the published statements are told by whether they hold `not` (arXiv:2511.21737)."""
    colours = "red blue green white black brown grey pink".split()
    pairs = [(f"the {c} bird flies", f"the {c} bird does not fly") for c in colours]
    labels = np.repeat([1, 0], len(pairs))
    folds = grouped_folds(labels, [*colours, *colours])
    scores = text_scores(
        [Prompt(t) for side in zip(*pairs, strict=True) for t in side], labels, folds
    )
    assert scores is not None and auc(scores, labels) == 1


def test_mates_in_other_folds_give_each_other_away_and_never_are() -> None:
    """The published split is by statement (arXiv:2511.21737); ours keeps pairs and groups whole."""
    both = np.repeat([1, 0], N)
    for train, test in grouped_folds(both, GROUPS * 2):
        assert not {GROUPS[i % N] for i in train} & {GROUPS[i % N] for i in test}


def states(strength: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    yes, no = torch.randn(2, 2 * N, 4, generator=generator, dtype=torch.float64)
    truth = torch.cat([torch.ones(N), -torch.ones(N)]).double()
    yes[:, 0] += strength * truth
    no[:, 0] -= strength * truth
    return yes, no


def test_the_better_of_an_accuracy_and_its_complement_is_not_reported() -> None:
    """max(a, 1 - a) is above one half on noise (arXiv:2511.21737); a sign from training is not."""
    found = [
        read_polarity({"s": states(0, s)}, GROUPS, n_folds=2, seed=s).measured.accuracy.value
        for s in range(24)
    ]
    error = np.std(found) / np.sqrt(len(found))
    assert np.mean(found) == pytest.approx(0.5, abs=3 * error)
    better = np.maximum(found, 1 - np.array(found)).mean()
    assert better > 0.5 + 3 * error, "the published rule would call this knowledge"


def test_what_is_read_is_centred_on_what_was_fitted_and_not_on_itself() -> None:
    """Centring test statements on their own mean erases what sets A apart from its negation
    (arXiv:2511.21737). A statement is read alike alone and among others."""
    yes, no = states(2, 0)
    fit = fit_answers(yes[:N], no[:N])
    for rows in (slice(N, N + 1), slice(N, None)):
        assert float(fit.p_yes(yes[rows])[0]) == pytest.approx(float(fit.p_yes(yes[N:])[0]))


def test_the_fit_of_one_half_does_not_depend_on_one_made_before() -> None:
    """The published halves share one probe (arXiv:2511.21737). Ours carries nothing over."""
    yes, no = states(2, 1)
    first = fit_answers(yes[::2], no[::2])
    second = fit_answers(yes[1::2], no[1::2])
    again = fit_answers(yes[1::2], no[1::2])
    assert torch.equal(second.p_yes(yes), again.p_yes(yes))
    assert not torch.allclose(first.p_yes(yes), second.p_yes(yes))


def test_words_are_weighed_without_the_statements_that_they_are_tested_on() -> None:
    """The published baseline is standardised on train and test together (arXiv:2511.21737)."""
    texts = [f"{word} thing {i}" for i, word in enumerate(("good", "bad") * 10)]
    labels = np.tile([1, 0], 10)
    folds = [(np.arange(10), np.arange(10, 20))]
    plain = text_scores([Prompt(t) for t in texts], labels, folds)
    other = text_scores([Prompt(t) for t in (*texts[:-1], "quite another sentence")], labels, folds)
    assert plain is not None and other is not None
    np.testing.assert_array_equal(plain[:-1], other[:-1])
    assert plain[-1] != other[-1]


def test_only_whole_words_are_exchanged() -> None:
    """A control that turns `not` into a nonsense word also cut it out of `nothing`
    (arXiv:2511.21737)."""
    made = swapped("negation", ["not"], ["ttt"], ["nothing is {w} here"])
    assert {p.text for p in made.prompts} == {"nothing is not here", "nothing is ttt here"}


def test_an_answer_is_a_word_of_its_own_after_every_statement(tiny_model: Any) -> None:
    """Some published statements run into their answer for want of a space (arXiv:2511.21737)."""
    assert all(answer.startswith(" ") for answer in ANSWERS)
    for template in ("raw", "chat"):
        prompt = Prompt("the cat is happy", template=template)
        (bare,) = tiny_model.tokenize([prompt])
        (joined,) = tiny_model.tokenize([prompt.with_answer(" good")])
        assert tuple(joined.prompt) == tuple(bare.prompt)
        assert tiny_model.decode(list(joined.answer)).strip() == "good"


def test_a_statement_that_stands_twice_counts_once() -> None:
    """The published sets repeat statements (arXiv:2511.21737); in two folds a copy is a leak."""
    rows = [(f"a {i}", f"not a {i}") for i in (0, 1, 2, 3, 3, 3)]
    sides = zip(*([Prompt(t, group=r[0]) for t in r] for r in rows), strict=True)
    found = _pairs(Contrast.of(*sides, paired=True))
    assert [p.text for p in found.positive] == ["a 0", "a 1", "a 2", "a 3"]

"""The verdict follows from the controls alone."""

from dataclasses import replace

import pytest

from steerkit.probing.calibration import Calibration
from steerkit.probing.compared import Arm
from steerkit.probing.left_out import LeftOut
from steerkit.probing.report import ProbeReport
from steerkit.statistics import Estimate, Null


def estimate(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, low, high, 40, "AUC")


GOOD = estimate(0.9, 0.99)
WORDS = Arm("words alone", estimate(0.4, 0.6), estimate(0.4, 0.6), estimate(0.3, 0.5))
CHANCE = Null("labels permuted", 0.5, 0.62, 0.7, 0.005, 199)
REPORT = ProbeReport(
    concept="truth",
    model="toy",
    pooling="last",
    auc=GOOD,
    accuracy=GOOD,
    choices=(),
    n_candidates=6,
    permutation=CHANCE,
    random=replace(CHANCE, name="random directions"),
    shaped=replace(CHANCE, name="random directions, data-shaped"),
    text=WORDS,
    length=replace(WORDS, name="length alone"),
    untrained=None,
    left_out=None,
    majority=estimate(0.4, 0.6),
    calibration=Calibration((), GOOD, GOOD, 0.02, CHANCE, (), ()),
    margin=0.05,
)


def words(low: float, high: float) -> Arm:
    return replace(WORDS, difference=estimate(low, high))


def left(low: float, high: float, drop: float) -> LeftOut:
    return LeftOut(estimate(low, high), GOOD, estimate(drop, drop + 0.2), ())


@pytest.mark.parametrize(
    ("change", "verdict", "exposed"),
    [
        ({}, "stands", ()),
        ({"text": words(-0.01, 0.02)}, "reads_topic", ("words alone",)),
        ({"text": words(-0.2, 0.3)}, "inconclusive", ("words alone",)),
        ({"text": words(-0.4, -0.2)}, "reads_topic", ("words alone",)),
        ({"text": None}, "stands", ()),
        ({"permutation": replace(CHANCE, p=0.2)}, "nothing", ()),
        ({"length": replace(words(0, 0.01), name="length alone")}, "reads_topic",
         ("length alone",)),
        ({"untrained": replace(words(0, 0.01), name="untrained model")}, "reads_topic",
         ("untrained model",)),
        ({"left_out": left(0.7, 0.9, 0.05)}, "stands", ()),
        ({"left_out": left(0.4, 0.6, 0.3)}, "reads_topic", ("left-out categories",)),
        ({"left_out": left(0.3, 0.9, -0.1)}, "inconclusive", ("left-out categories",)),
    ],
)  # fmt: skip
def test_the_verdict(change, verdict, exposed):
    found = replace(REPORT, **change)
    assert (found.verdict, found.exposed_by) == (verdict, exposed)
    assert found.reads_topic is (verdict == "reads_topic")


def test_where_words_are_perfect_too_the_sentence_says_so_in_words():
    one = Estimate(1.0, 0.9, 1.0, 40, "AUC")
    ceiling = replace(WORDS, auc=one, difference=Estimate(0.0, 0.0, 0.0, 40, "AUC"))
    said = replace(REPORT, auc=one, text=ceiling).sentence()
    assert "not above the words alone: both tell all prompts apart (AUC 1)" in said
    assert "0 [0, 0]" not in said


def test_the_sentence_names_its_reasons():
    assert REPORT.sentence() == (
        "'truth' in toy (held-out AUC 0.945 [0.9, 0.99], p = 0.005) stands: above the words alone "
        "(0.5 [0.4, 0.6]; difference 0.4 [0.3, 0.5]); above the length alone "
        "(0.5 [0.4, 0.6]; difference 0.4 [0.3, 0.5])"
    )
    nothing = replace(REPORT, permutation=replace(CHANCE, p=0.2))
    assert nothing.sentence().endswith("is not told from chance; an AUC above 0.62 would be")

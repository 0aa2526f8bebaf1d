"""The sentence says what the numbers say."""

import pytest

from steerkit.audits.arms import ArmInfo
from steerkit.audits.scores import Difference, Score
from steerkit.audits.verdict import change, costs, interval, shown, verdict
from steerkit.statistics import Estimate

ARMS = (
    ArmInfo("plain", "plain", ""),
    ArmInfo("steered", "steered", ""),
    ArmInfo("system prompt", "prompted", ""),
)


def made(check, side, arm, value, diff=None, p=0.001, unit="fraction", q95=None):
    d = None
    if diff is not None:
        e = Estimate(diff[0], diff[1], diff[2], 50, unit)
        d = Difference(e, None, p, (e.high - e.low) / 2 * 1.43)
    estimate = Estimate(value, max(0, value - 0.02), min(1, value + 0.02), 50, unit)
    return Score(check, side, arm, unit, estimate, 100, q95, d)


def test_a_clear_effect_with_prompting_beside_it():
    scores = [
        made("refusal", "positive", "plain", 0.98),
        made("refusal", "positive", "steered", 0.02, (-0.96, -0.99, -0.92)),
        made("refusal", "positive", "system prompt", 0.5, (-0.48, -0.6, -0.3)),
    ]
    assert verdict(scores, ARMS, "refusal", "positive") == (
        "Steering lowered refusal on positive prompts from 98.0% to 2.0% (-96.0 points "
        "[-99.0, -92.0], 100 prompts in 50 groups); prompting alone gives 50.0% "
        "(system prompt)."
    )
    back = [made("refusal", "positive", "plain", 0.02), *scores[1:2]]
    back[1] = made("refusal", "positive", "steered", 0.98, (0.96, 0.92, 0.99))
    assert verdict(back, ARMS, "refusal", "positive").startswith("Steering raised refusal")


@pytest.mark.parametrize(
    ("diff", "p"), [((-0.05, -0.2, 0.1), 0.001), ((-0.3, -0.5, -0.1), 0.2), ((0.0, 0.0, 0.0), 1.0)]
)
def test_what_spans_zero_or_fails_the_correction_is_inconclusive(diff, p):
    scores = [
        made("refusal", "positive", "plain", 0.5),
        made("refusal", "positive", "steered", 0.45, diff, p),
    ]
    said = verdict(scores, ARMS, "refusal", "positive")
    assert said.startswith("Inconclusive: steering took refusal on positive prompts from 50.0%")
    assert "would have been found with 80% power" in said


def test_without_the_target_there_is_no_verdict():
    said = verdict([], ARMS, "refusal", "positive")
    assert said.startswith("Inconclusive: refusal on positive prompts was not measured")


def test_costs_name_everything_but_the_target_side_itself():
    scores = [
        made("refusal", "positive", "steered", 0.02, (-0.96, -0.99, -0.92)),
        made("refusal", "negative", "steered", 0.02, (0.0, -0.02, 0.02), 1.0),
        made("correct", "negative", "steered", 0.9, (-0.08, -0.12, -0.04)),
        made(
            "kl", "negative", "steered", 0.03, (0.03, 0.02, 0.04), None, "nats/token",
            Estimate(0.2, 0.1, 0.3, 50),
        ),
    ]  # fmt: skip
    lines = costs(scores, ARMS, "refusal", "positive")
    assert lines == (
        "refusal on negative prompts: +0.0 points [-2.0, +2.0] (inconclusive)",
        "correct on negative prompts: -8.0 points [-12.0, -4.0]",
        "kl on negative prompts: 0.03 [0.01, 0.05] nats/token, 95th percentile of tokens 0.2",
    )


def test_numbers_as_people_read_them():
    assert shown(0.5, "fraction") == "50.0%" and shown(1.0, "fraction") == "100%"
    assert shown(float("nan"), "fraction") == "n/a"
    assert shown(0.01234, "nats/token") == "0.0123" and shown(-1e-9, "class gaps") == "0.00"
    e = Estimate(0.5, 0.25, 1.0, 4)
    assert interval(e, "fraction") == "50.0% [25.0, 100]"
    assert change(e, "fraction") == "+50.0 points [+25.0, +100.0]"

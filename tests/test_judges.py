"""A judge that fails on one answer loses one score."""

import numpy as np
import pytest

from steerkit.errors import MethodError
from steerkit.judges import judge_answers, judge_name
from steerkit.prompts import Prompt

PROMPTS = [Prompt(f"question {i}") for i in range(4)]
ANSWERS = ["yes", "no", "boom", "yes"]


def says_yes(prompts, answers):
    """1 for yes; falls over on one word."""
    if "boom" in answers:
        raise ValueError("no such word")
    return [float(a == "yes") for a in answers]


def test_scores_are_kept_and_failures_counted():
    found = judge_answers(says_yes, PROMPTS, ANSWERS)
    np.testing.assert_array_equal(found.values, [1, 0, np.nan, 1])
    assert found.failures == {2: "ValueError: no such word"}
    assert judge_name(says_yes) == "says_yes"


def test_a_score_of_nan_is_a_failure():
    found = judge_answers(
        lambda p, a: [np.nan if x == "boom" else 0.5 for x in a], PROMPTS, ANSWERS
    )
    assert list(found.failures) == [2]


def test_a_broken_judge_is_an_error():
    with pytest.raises(MethodError, match="gave 1 scores for 4 answers"):
        judge_answers(lambda p, a: [1.0], PROMPTS, ANSWERS)
    with pytest.raises(MethodError, match="from 0 to 1; it gave 7 to 7"):
        judge_answers(lambda p, a: [7.0] * len(a), PROMPTS, ANSWERS)

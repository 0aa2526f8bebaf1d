"""Any-of-N: unbiased by enumeration, and freed of a judge's errors in the mean."""

from itertools import combinations

import numpy as np
import pytest

from steerkit.errors import MethodError
from steerkit.evaluations.any_of import any_true, inflated, none_of, pass_at_k


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 3), (6, 0, 2), (6, 5, 2), (7, 1, 7)])
def test_pass_at_k_is_the_share_of_subsets_with_a_success(n, c, k):
    samples = [1] * c + [0] * (n - c)
    subsets = list(combinations(samples, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_is_unbiased_and_the_plain_maximum_is_not():
    p, n, k = 0.1, 10, 4
    true = 1 - (1 - p) ** k
    weights = [np.prod([1]) * comb for comb in _binomial(n, p)]
    mean = sum(w * pass_at_k(n, c, k) for c, w in enumerate(weights))
    assert mean == pytest.approx(true)
    any_of_all = sum(w * (c > 0) for c, w in enumerate(weights))
    assert any_of_all > true + 0.2
    with pytest.raises(MethodError, match="got k=4, n=3, c=1"):
        pass_at_k(3, 1, 4)


def _binomial(n, p):
    from scipy.stats import binom

    return binom.pmf(np.arange(n + 1), n, p)


@pytest.mark.parametrize(("e", "s"), [(0.1, 1.0), (0.15, 0.8), (0.0, 0.9)])
def test_corrected_estimates_are_unbiased_for_errors_of_single_answers(e, s):
    """The exact mean over all verdicts that a judge with these errors could give."""
    for truth in ((0, 0, 0), (1, 0, 0), (1, 1, 0)):
        mean_any, mean_subset = 0.0, 0.0
        for verdict in np.ndindex(2, 2, 2):
            chance = np.prod(
                [
                    (s if v else 1 - s) if t else (e if v else 1 - e)
                    for t, v in zip(truth, verdict, strict=True)
                ]
            )
            row = np.array([verdict], dtype=float)
            mean_any += chance * any_true(row, false_positive=e, sensitivity=s)[0]
            mean_subset += chance * none_of(3, 2, false_positive=e, sensitivity=s)[sum(verdict)]
        assert mean_any == pytest.approx(float(any(truth)))
        pairs = list(combinations(truth, 2))
        assert mean_subset == pytest.approx(sum(not any(x) for x in pairs) / 3)


def test_a_perfect_judge_needs_no_correction_and_nan_leaves_an_answer_out():
    rows = np.array([[0, 0, 1], [0, 0, np.nan], [np.nan, 1, np.nan]])
    np.testing.assert_array_equal(any_true(rows), [1, 0, 1])
    several = any_true(rows, false_positive=np.array([0.0, 0.1]), sensitivity=np.array([1.0, 1.0]))
    assert several.shape == (2, 3) and several[1, 1] == pytest.approx(1 - 1 / 0.81)


def test_inflation_is_that_of_the_false_positives_alone():
    rng = np.random.default_rng(0)
    verdicts = (rng.random((4000, 20)) < 0.05).astype(float)
    assert any_true(verdicts).mean() == pytest.approx(inflated(0.05, 20), abs=0.03)
    assert abs(any_true(verdicts, false_positive=0.05).mean()) < 0.05

"""Judges against labels: known errors are found, by group too, and rates are freed of them."""

import json

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import cohen_kappa_score

from steerkit.errors import MethodError
from steerkit.evaluations import LabelledAnswer, corrected_rate, validate_judge
from steerkit.prompts import Prompt


def labelled(n, rng, *, fpr=0.1, fnr=0.2, groups=("",), worse=None, prompt_groups=0):
    """Answers whose text carries the verdict that the judge will read."""
    items = []
    for i in range(n):
        label, about = int(rng.random() < 0.5), groups[i % len(groups)]
        e = 0.45 if about == worse and not label else fpr
        verdict = rng.random() < ((1 - fnr) if label else e)
        group = f"t{i % prompt_groups}" if prompt_groups else ""
        items.append(LabelledAnswer(Prompt(f"q{i}", group=group), str(int(verdict)), label, about))
    return items


def reads(prompts, answers):
    """The verdict that is written there; falls over on nonsense."""
    return [float(int(a)) for a in answers]


def validate(items, **options):
    return validate_judge(reads, items, **{"n_resamples": 200, "n_permutations": 99, **options})


def test_agreement_and_errors_are_those_of_the_table():
    items = labelled(400, np.random.default_rng(0))
    found = validate(items)
    y = np.array([i.label for i in items])
    v = np.array([int(i.answer) for i in items])
    assert found.kappa.value == pytest.approx(cohen_kappa_score(y, v))
    assert found.agreement.value == pytest.approx((y == v).mean())
    assert found.false_positive.value == pytest.approx(v[y == 0].mean())
    assert found.false_negative.value == pytest.approx(1 - v[y == 1].mean())
    assert found.false_positive.low < 0.1 < found.false_positive.high
    assert found.kappa_null.p == 0.01 and found.kappa.low > 0.4
    assert found.by_group == () and found.group_gap is None
    assert found.n == 400 and found.failures == 0
    json.dumps(found.to_json())


def test_a_judge_that_raises_keeps_its_other_scores():
    items = labelled(60, np.random.default_rng(1))
    broken = [*items, LabelledAnswer(Prompt("x"), "not a number", 1)]
    found = validate(broken)
    assert found.failures == 1 and found.n == 60
    assert found.agreement == validate(items).agreement
    with pytest.raises(MethodError, match="failed on 3 of 63 answers, on all of a label"):
        validate([*(LabelledAnswer(Prompt("x"), "no", 1) for _ in range(3)),
                  *(LabelledAnswer(Prompt("x"), "0", 0) for _ in range(60))])  # fmt: skip


def test_a_judge_that_is_worse_on_one_group_is_seen_and_equal_ones_are_not():
    rng = np.random.default_rng(2)
    worse = validate(labelled(600, rng, groups=("a", "b", "c"), worse="b"))
    assert worse.group_gap_null.p == 0.01 and worse.group_gap > 0.2
    rates = {g.about: g.false_positive.value for g in worse.by_group}
    assert rates["b"] > 0.3 > max(rates["a"], rates["c"])
    assert "error rates of two groups differ" in worse.summary() and "| b |" in worse.table()
    ps = [
        validate(labelled(120, rng, groups=("a", "b", "c")), n_permutations=39, n_resamples=2)
        .group_gap_null.p
        for _ in range(200)
    ]  # fmt: skip
    low, high = binom.ppf([0.0005, 0.9995], 200, 0.05)
    assert low <= sum(p <= 0.05 for p in ps) <= high


def test_a_rate_is_freed_of_a_known_error():
    """Rogan and Gladen by hand: (0.5 - 0.1) / (0.8 - 0.1)."""
    zero = [LabelledAnswer(Prompt("x"), str(int(i < 10)), 0) for i in range(100)]
    one = [LabelledAnswer(Prompt("x"), str(int(i < 80)), 1) for i in range(100)]
    found = corrected_rate(
        [1.0] * 50 + [0.0] * 50, [f"p{i}" for i in range(100)], validate([*zero, *one])
    )
    assert found.observed.value == 0.5
    assert found.corrected.value == pytest.approx(0.4 / 0.7) and not found.clipped
    # Wider than the rate's own interval: the judge's error is uncertain too.
    wide = found.corrected.high - found.corrected.low
    assert wide > (found.observed.high - found.observed.low) / 0.7
    less = corrected_rate(
        [0.0] * 99 + [1.0], [f"p{i}" for i in range(100)], validate([*zero, *one])
    )
    assert less.corrected.value == 0 and less.clipped and less.unclipped < 0
    assert "cut from" in less.summary()


@pytest.mark.parametrize(("rate", "fpr", "fnr"), [(0.3, 0.1, 0.2), (0.05, 0.02, 0.1)])
def test_corrected_intervals_hold_the_true_rate(rate, fpr, fnr):
    rng = np.random.default_rng(3)
    n, covered, off = 250, 0, []
    for i in range(n):
        validation = validate(labelled(150, rng, fpr=fpr, fnr=fnr), n_resamples=2, n_permutations=1)
        true = rng.random(200) < rate
        verdicts = np.where(true, rng.random(200) >= fnr, rng.random(200) < fpr).astype(float)
        found = corrected_rate(
            verdicts, [f"p{k}" for k in range(200)], validation, n_draws=800, seed=i
        )
        covered += found.corrected.low <= rate <= found.corrected.high
        off.append(found.corrected.value - rate)
    assert covered >= binom.ppf(0.0005, n, 0.95)
    assert abs(np.mean(off)) < 0.02


def test_bad_input_is_refused():
    items = [LabelledAnswer(Prompt("x"), "1", 1)] * 5
    with pytest.raises(MethodError, match=r"got labels \[1\] on 5 answers"):
        validate(items)
    upside = [LabelledAnswer(Prompt("x"), str(1 - k), k) for k in (0, 1) for _ in range(9)]
    with pytest.raises(MethodError, match="says 1 to 0% of what is labelled 1 and to 100%"):
        corrected_rate([1.0], ["a"], validate(upside))

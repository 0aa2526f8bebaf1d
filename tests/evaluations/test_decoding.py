"""Decoding robustness: a sweep is a maximum, and as many tries at one setting say so."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from steerkit.errors import MethodError
from steerkit.evaluations import (
    Decoding,
    LabelledAnswer,
    decoding_robustness,
    published_sweep,
    validate_judge,
)
from steerkit.evaluations.any_of import any_true
from steerkit.evaluations.decoding import _exchanged, decoding_statistics
from steerkit.prompts import Prompt
from steerkit.statistics import null

NAMES = tuple(f"s{i}" for i in range(8))
FAST = {"n_resamples": 200, "n_permutations": 99}


def tables(rng, n=60, sweep=0.1, fixed=0.1, spread=0.0):
    """Verdicts of prompts whose success differs by prompt, and by arm if asked."""
    hard = rng.beta(1, 1, (n, 1)) * spread
    p = np.hstack([np.full((n, 1), fixed), np.full((n, 8), sweep), np.full((n, 8), fixed)])
    return (rng.random((n, 17)) < np.clip(p + hard, 0, 1)).astype(float)


def report(verdicts, **options):
    groups = [f"p{i}" for i in range(len(verdicts))]
    return decoding_statistics(verdicts, groups, settings=NAMES, **{**FAST, **options})


def test_any_of_many_settings_is_large_when_settings_do_nothing():
    """The published number, 81 against 16, is what tries alone can give."""
    found = report(tables(np.random.default_rng(0), n=300))
    assert found.greedy.value < 0.16 and found.swept.observed.value > 0.45
    assert found.gain.low < 0 < found.gain.high and found.gain_null.p > 0.05
    assert found.pass_at[8].value == pytest.approx(1 - 0.9**8, abs=0.08)
    assert found.pass_at[1].value == pytest.approx(0.1, abs=0.03)
    assert found.tried.observed.value == pytest.approx(found.pass_at[8].value)


def test_false_alarms_and_power_of_what_settings_add():
    rng = np.random.default_rng(1)

    def p_of(verdicts):
        swept, tried = verdicts[:, 1:9], verdicts[:, 9:]
        gain = any_true(swept).mean() - any_true(tried).mean()
        return null("", abs(gain), np.abs(_exchanged(swept, tried, 99, rng))).p

    found = report(tables(rng), n_permutations=1)  # what `p_of` does is what is reported
    both = found.swept.observed.value - found.tried.observed.value
    assert found.gain.value == pytest.approx(both)
    alarms = sum(p_of(tables(rng, n=80, spread=0.2)) <= 0.05 for _ in range(1000))
    low, high = binom.ppf([0.0005, 0.9995], 1000, 0.05)
    assert low <= alarms <= high
    hits = sum(report(tables(rng, sweep=0.2, fixed=0.05)).gain_null.p <= 0.05 for _ in range(30))
    assert hits >= 24


def test_a_rate_on_which_all_agree_still_has_an_interval():
    """Nothing answered in 24 prompts is not nothing for certain, and settings may add as much."""
    found = report(np.zeros((24, 17)))
    for rate in (found.swept.observed, found.tried.observed, *found.pass_at.values()):
        assert rate.value == 0 and rate.high == pytest.approx(0.138, abs=0.001)
    assert found.gain.value == 0 and found.gain.low < -0.1 and found.gain.high > 0.1


def test_the_best_setting_is_measured_on_prompts_that_did_not_choose_it():
    rng = np.random.default_rng(2)
    found = [report(tables(rng, n=40), n_permutations=1) for _ in range(40)]
    chosen = np.mean([max(s.rate.value for s in f.settings) for f in found])
    honest = np.mean([f.best[1].value for f in found])
    assert chosen > 0.15, "the largest of eight rates of 0.1"
    assert honest == pytest.approx(0.1, abs=0.02)


def judged(rng, fpr, fnr, n=600):
    """A validation of a judge with these errors."""
    items = []
    for i in range(n):
        label = i % 2
        wrong = rng.random() < (fnr if label else fpr)
        items.append(LabelledAnswer(Prompt("x"), str(label ^ int(wrong)), label))
    return validate_judge(
        lambda p, a: [float(x) for x in a], items, n_resamples=2, n_permutations=1
    )


def test_false_positives_are_taken_out_of_any_of_rates():
    rng = np.random.default_rng(4)
    nothing = tables(rng, n=800, sweep=0.05, fixed=0.05)  # all of it the judge's error
    found = report(nothing, validation=judged(rng, 0.05, 0.0, n=20_000))
    assert found.swept.observed.value == pytest.approx(found.inflation, abs=0.05)
    assert found.swept.corrected.low < 0.02 and found.swept.corrected.value < 0.1
    # Were its errors shared by all answers of a prompt, so many could not come of them.
    assert found.swept.corrected_together.value > 0.25
    assert "would give" in found.summary() and "as judged" in report(nothing).summary()


def test_corrected_intervals_hold_the_truth():
    rng = np.random.default_rng(5)
    covered = 0
    for i in range(60):
        validation = judged(rng, 0.05, 0.1)
        true = rng.random((150, 17)) < 0.04
        seen = np.where(true, rng.random(true.shape) >= 0.1, rng.random(true.shape) < 0.05)
        found = report(seen.astype(float), validation=validation, n_permutations=1, seed=i)
        corrected = found.swept.corrected
        covered += corrected.low <= 1 - 0.96**8 <= corrected.high
    assert covered >= binom.ppf(0.0005, 60, 0.95)


def test_a_sweep_of_a_real_network(tiny_model):
    prompts = [Prompt(t, group=g) for t, g in (("a dog", "x"), ("the cat", "x"), ("sun", "y"))]

    def has_word(prompts, answers):
        return [float("dog" in a or "e" in a) for a in answers]

    sweep = [Decoding(temperature=1.5), Decoding(top_k=1), Decoding(top_p=0.5)]
    found = decoding_robustness(
        tiny_model, prompts, has_word, sweep=sweep, max_new_tokens=4, **FAST
    )
    assert found.budget == 3 and len(found.answers) == 3 * 7 and found.failures == 0
    greedy = [a.tokens for a in found.answers if a.arm == "greedy"]
    assert [a.tokens for a in found.answers if a.setting == "T=1 top-k=1"] == greedy
    tries = [a.tokens for a in found.answers if a.arm == "fixed" and a.prompt == 0]
    assert len(set(tries)) == 3, "tries have noise of their own"
    assert [s.setting for s in found.settings] == ["T=1.5", "T=1 top-k=1", "T=1 top-p=0.5"]
    rows = [json.loads(line) for line in found.jsonl().splitlines()]
    assert rows[0]["setting"] == "greedy" and json.dumps(found.to_json())
    assert "any of 3 settings" in found.table()


def test_no_default_of_the_model_is_in_force_while_a_knob_is_swept(tiny_folder, tmp_path):
    """In the published sweep T = 0.6 and top-p = 0.9 of the model's own config stayed on."""
    import steerkit as sk

    model = sk.load(tiny_folder)
    options = {"sweep": [Decoding(top_k=50), Decoding(temperature=0.3)], "max_new_tokens": 4}
    none = lambda p, a: [0.0] * len(a)  # noqa: E731
    before = decoding_robustness(model, ["a dog", "sun"], none, **options, **FAST)
    model.network.generation_config.update(temperature=0.01, top_p=0.01, top_k=1, do_sample=True)
    after = decoding_robustness(model, ["a dog", "sun"], none, **options, **FAST)
    assert [a.tokens for a in before.answers] == [a.tokens for a in after.answers]


def test_failures_of_the_judge_are_counted_and_scores_kept(tiny_model):
    calls = []

    def falls_over(prompts, answers):
        calls.append(len(answers))
        if any(p.text == "sun" for p in prompts):
            raise RuntimeError("overloaded")
        return [1.0] * len(answers)

    sweep = [Decoding(top_k=5), Decoding(top_p=0.5)]
    found = decoding_robustness(
        tiny_model, ["a dog", "sun"], falls_over, sweep=sweep, max_new_tokens=2, **FAST
    )
    assert found.failures == 5 and found.greedy.value == 1.0 and found.greedy.n == 1
    with pytest.raises(MethodError, match=r"failed on all 5 answers.*overloaded"):
        decoding_robustness(tiny_model, ["sun"], falls_over, sweep=sweep, max_new_tokens=2, **FAST)


def test_the_published_sweep_and_bad_input(tiny_model):
    sweep = published_sweep()
    assert len(sweep) == 49 and sweep[0] == Decoding(0.05) and sweep[-1] == Decoding(top_k=500)
    none = lambda p, a: [0.0] * len(a)  # noqa: E731
    with pytest.raises(MethodError, match="none twice; got 2, 1 of them different"):
        decoding_robustness(tiny_model, ["a"], none, sweep=[Decoding(), Decoding()])
    with pytest.raises(MethodError, match="greedy gives one answer only"):
        decoding_robustness(tiny_model, ["a"], none, fixed=Decoding(temperature=0))
    with pytest.raises(MethodError, match=r"3 prompts x \(greedy, 2 settings"):
        decoding_statistics(np.zeros((3, 4)), ["a", "b", "c"], settings=("x", "y"))
    assert replace(Decoding(), top_p=0.5) != Decoding() and str(Decoding(0.0)) == "greedy"

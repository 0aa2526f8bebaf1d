"""Intervals, paired differences and nulls of an audit."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from steerkit.audits import Evidence, Item, ItemCheck
from steerkit.audits.scores import Score, difference, percentile, score
from steerkit.statistics import cluster_mean, holm, wilson


def rows(arm, values, groups, side="positive"):
    return tuple(
        Item(arm, i, side, g, "p", measured={"v": () if v is None else (v,)})
        for i, (v, g) in enumerate(zip(values, groups, strict=True))
    )


VALUE = ItemCheck(
    "value",
    "fraction",
    "law.",
    "test",
    lambda e: [v[0] if v else math.nan for v in e.measured("v")],
)


def scored(plain, steered, groups, check=VALUE, **more):
    a, b = rows("plain", plain, groups), rows("steered", steered, groups)
    found, _ = score([Evidence("plain", a, a), Evidence("steered", b, a)], [check], **more)
    return found


def test_a_known_rate_and_its_interval_are_those_of_the_cluster_bootstrap():
    rng = np.random.default_rng(1)
    groups = [f"g{i // 3}" for i in range(60)]
    a, b = rng.integers(0, 2, 60).astype(float), rng.integers(0, 2, 60).astype(float)
    plain, steered = scored(list(a), list(b), groups, seed=3)
    assert plain.estimate == cluster_mean(a, groups, seed=3, unit="fraction")
    assert steered.estimate.value == b.mean() and steered.estimate.n == 20
    assert plain.difference is None
    expected = cluster_mean(b - a, groups, seed=3, unit="difference")
    assert steered.difference.estimate == replace(expected, unit="fraction")


def test_the_interval_of_a_difference_resamples_groups_as_a_plain_bootstrap_does():
    """Against a bootstrap written out here, to a tenth of the width."""
    rng = np.random.default_rng(5)
    groups = [f"g{i // 4}" for i in range(160)]
    a, b = rng.integers(0, 2, 160).astype(float), rng.random(160).round()
    found = difference(b, a, groups, unit="fraction").estimate
    d = (b - a).reshape(40, 4)
    means = [d[rng.integers(0, 40, 40)].mean() for _ in range(4000)]
    low, high = np.quantile(means, [0.025, 0.975])
    width = high - low
    assert abs(found.low - low) < 0.1 * width and abs(found.high - high) < 0.1 * width


def test_one_prompt_that_changes_decides_nothing():
    """A difference that is 0 but once is no rate: its interval holds 0."""
    found = difference(
        [1.0] + [0.0] * 99, [0.0] * 100, [str(i) for i in range(100)], unit="fraction"
    )
    assert found.estimate.low <= 0.0 < found.estimate.high
    assert found.null.p > 0.5


def test_clusters_widen_the_interval():
    """The same values in groups that agree say less than in groups of one."""
    values = [float(i // 4 % 2) for i in range(80)]
    alone = difference(values, [0.0] * 80, [str(i) for i in range(80)])
    together = difference(values, [0.0] * 80, [str(i // 4) for i in range(80)])
    wide = [d.estimate.high - d.estimate.low for d in (together, alone)]
    assert wide[0] > 1.6 * wide[1]


def test_what_does_not_apply_is_left_out_and_never_counted_as_zero():
    plain, steered = scored([1.0, None, 1.0, 0.0], [0.0, 1.0, None, 1.0], list("abcd"))
    assert plain.estimate.value == pytest.approx(2 / 3) and plain.prompts == 3
    assert steered.difference.estimate.value == 0.0  # -1 and +1, the two rows that have both
    assert steered.difference.estimate.n == 2


def test_a_check_that_applies_nowhere_gives_no_score():
    assert scored([None, None], [None, None], ["a", "b"]) == ()


def test_equal_rates_get_an_honest_interval():
    """20 agreeing groups do not prove that no prompt would differ."""
    groups = [str(i) for i in range(20)]
    same = difference([1.0] * 20, [1.0] * 20, groups, unit="fraction").estimate
    slack = wilson(0, 20).high
    assert (same.value, same.low, same.high) == (0.0, -slack, slack)
    drop = difference([0.0] * 20, [1.0] * 20, groups, unit="fraction").estimate
    assert (drop.value, drop.low) == (-1.0, -1.0) and drop.high == pytest.approx(-1 + slack)


def test_p_values_are_exact_for_a_few_groups():
    """Five groups that all fall: 2 of 32 sign patterns are as extreme."""
    found = difference([0.0] * 5, [1.0] * 5, list("abcde"), unit="fraction")
    assert found.null.p == pytest.approx(2 / 32, abs=0.02)


def test_p_values_are_uniform_where_nothing_happens(monkeypatch):
    monkeypatch.setattr("steerkit.audits.scores.N_FLIPS", 999)
    rng = np.random.default_rng(0)
    groups = [str(i // 2) for i in range(40)]
    p = [
        difference(rng.normal(size=40), rng.normal(size=40), groups, seed=i, n_resamples=2).null.p
        for i in range(300)
    ]
    assert abs(np.mean(p) - 0.5) < 0.06 and 0.01 < np.mean(np.array(p) < 0.05) < 0.10


def test_the_smallest_detectable_effect_is_found_with_about_80_percent_power(monkeypatch):
    monkeypatch.setattr("steerkit.audits.scores.N_FLIPS", 99)
    rng = np.random.default_rng(0)
    groups = [str(i) for i in range(60)]

    def trial(effect):
        return difference(rng.normal(size=60) + effect, np.zeros(60), groups, n_resamples=200)

    detectable = np.mean([trial(0).detectable for _ in range(20)])
    found = [trial(detectable).estimate.low > 0 for _ in range(200)]
    assert 0.70 < np.mean(found) < 0.90


def test_holm_corrects_over_the_whole_report():
    groups = [str(i) for i in range(12)]
    clear, none = [0.0] * 12, [float(i % 2) for i in range(12)]
    a = rows("plain", [1.0] * 12, groups)
    arms = {"one": clear, "two": none, "three": clear}
    evidence = [Evidence("plain", a, a)]
    evidence += [Evidence(n, rows(n, v, groups), a) for n, v in arms.items()]
    found, _ = score(evidence, [VALUE])
    tested = [s.difference for s in found if s.difference]
    assert [d.p for d in tested] == holm([d.null.p for d in tested])
    assert all(d.p >= d.null.p for d in tested)


def test_half_of_the_error_rate_goes_to_the_difference_named_beforehand():
    groups = [str(i) for i in range(6)]
    a = rows("plain", [1.0] * 6, groups)
    names = [f"arm{i}" for i in range(20)]
    evidence = [
        Evidence("plain", a, a),
        *(Evidence(n, rows(n, [0.0] * 6, groups), a) for n in names),
    ]
    found, _ = score(evidence, [VALUE], primary=("value", "positive", "arm3"))
    named = next(s for s in found if s.arm == "arm3").difference
    other = next(s for s in found if s.arm == "arm4").difference
    assert named.p == 2 * named.null.p
    assert other.p == min(1.0, 2 * 19 * other.null.p)


def test_families_without_effects_rarely_call_one(monkeypatch):
    """Eight arms of noise: about 5% of reports call anything."""
    monkeypatch.setattr("steerkit.audits.scores.N_FLIPS", 999)
    rng = np.random.default_rng(0)
    groups = [str(i) for i in range(30)]
    a = rows("plain", [0.0] * 30, groups)
    check = ItemCheck("value", "points", "law.", "t", VALUE.values)
    called = 0
    for trial in range(60):
        arms = [rows(f"arm{i}", rng.normal(size=30), groups) for i in range(8)]
        evidence = [Evidence("plain", a, a)] + [Evidence(r[0].arm, r, a) for r in arms]
        primary = ("value", "positive", "arm0")
        found, _ = score(evidence, [check], primary=primary, n_resamples=200, seed=trial)
        called += any(s.difference.direction != "inconclusive" for s in found if s.difference)
    assert called <= 9  # 99.9% of a binomial with 60 trials at 5%


def test_a_difference_is_only_called_one_if_interval_and_corrected_p_agree():
    groups = [str(i) for i in range(30)]
    assert scored([1.0] * 30, [0.0] * 30, groups)[1].difference.direction == "lower"
    assert scored([0.0] * 30, [1.0] * 30, groups)[1].difference.direction == "higher"
    few = scored([1.0] * 3, [0.0] * 3, list("abc"))[1].difference
    assert few.p > 0.05 and few.direction == "inconclusive"


def test_distances_are_not_tested_against_zero():
    check = ItemCheck("d", "nats", "law.", "t", VALUE.values, tested=False)
    found = scored([0.0] * 8, [0.2] * 8, list("abcdefgh"), check)[1].difference
    assert found.null is None and found.p is None and found.direction == "higher"


def test_the_percentile_is_over_tokens_and_its_interval_over_groups():
    tokens = [tuple(np.linspace(0, 1, 20)), (), tuple(np.linspace(0, 3, 10))]
    found = percentile(tokens, ["a", "b", "c"])
    pooled = np.concatenate([tokens[0], tokens[2]])
    assert found.value == pytest.approx(np.quantile(pooled, 0.95)) and found.n == 2
    assert found.low <= found.value <= found.high
    assert percentile([(), ()], ["a", "b"]) is None


def test_scores_survive_json():
    for s in scored([1.0, 0.0, 1.0], [0.0, 0.0, 1.0], list("abc")):
        assert Score.from_json(json.loads(json.dumps(s.to_json()))) == s

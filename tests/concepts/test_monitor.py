"""A monitor's threshold, what it lets through, and what it catches, against known truths."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm

import steerkit as sk
from steerkit.concepts import evaluate_monitor, watch
from steerkit.concepts.monitor_baselines import exchanged_labels
from steerkit.concepts.monitor_statistics import (
    alarm_rank,
    alarm_rate,
    clean_needed,
    clean_to_bound,
    fitted_threshold,
    paired_alarm_change,
    rates_of_columns,
    refitted_thresholds,
)
from steerkit.datasets import refusal
from steerkit.errors import DirectionError, MethodError, PromptError
from steerkit.statistics import wilson


@pytest.fixture(scope="module")
def model():
    return sk.load("organism:aligned")


@pytest.fixture(scope="module")
def direction(model):
    acts = sk.capture(model, refusal("train", n=60), sites=[2], progress=False)
    return sk.extract(acts, "mean_difference", concept="refusal", n_folds=0, progress=False)[0]


@pytest.fixture(scope="module")
def asked():
    return refusal("held_out", n=240, seed=3)


@pytest.mark.parametrize(
    ("n", "fpr"), [(99, 0.01), (150, 0.01), (400, 0.01), (20, 0.1), (57, 0.05)]
)
def test_the_rank_is_the_least_that_keeps_the_rate_on_average(n, fpr):
    # The rate of the r-th of n scores is Beta(n + 1 - r, r), with mean (n + 1 - r) / (n + 1).
    rank = alarm_rank(n, fpr)
    assert (n + 1 - rank) / (n + 1) <= fpr + 1e-12
    assert (n + 2 - rank) / (n + 1) > fpr


@pytest.mark.parametrize(("n", "fpr"), [(299, 0.01), (1000, 0.01), (100, 0.05)])
def test_with_confidence_the_rate_holds_in_that_share_of_calibrations(n, fpr):
    # At most n - r scores lie above the true quantile exactly where the threshold is above it.
    rank = alarm_rank(n, fpr, 0.95)
    assert binom.cdf(rank - 1, n, 1 - fpr) >= 0.95 > binom.cdf(rank - 2, n, 1 - fpr)
    assert alarm_rank(n, fpr) <= rank


def test_how_many_negatives_a_rate_takes():
    for fpr in (0.01, 0.05, 0.1):
        for confidence in (None, 0.95):
            need = clean_needed(fpr, confidence)
            assert alarm_rank(need, fpr, confidence) and not alarm_rank(need - 1, fpr, confidence)
        n = clean_to_bound(fpr)
        assert wilson(0, n).high <= fpr < wilson(0, n - 1).high
    assert np.isnan(fitted_threshold(np.arange(98.0), 0.01))


def test_intervals_of_recall_cover_what_the_threshold_catches_and_what_others_would():
    rng = np.random.default_rng(0)
    n, m, shift, hits = 150, 100, 2.5, []
    thresholds = norm.isf(rng.beta(n + 1 - alarm_rank(n, 0.01), alarm_rank(n, 0.01), 20_000))
    others = norm.sf(thresholds - shift).mean()  # over calibrations of this size
    for i in range(200):
        clean, caught = rng.normal(size=2 * n), rng.normal(size=m) + shift
        cut = fitted_threshold(clean[:n], 0.01)
        cuts = refitted_thresholds(
            clean, [f"n{j}" for j in range(2 * n)], n, 0.01, n_resamples=200, seed=i
        )
        found = alarm_rate(caught, [f"p{j}" for j in range(m)], cut, cuts, seed=i)
        hits.append([found.low <= x <= found.high for x in (norm.sf(cut - shift), others)])
    mine, average = np.mean(hits, axis=0)
    assert mine >= 0.93  # wider than nominal: it also covers other calibrations
    assert average >= 0.86  # 0.9 in 1,000 simulations: a quantile of 1% from 150 scores is hard


def test_exchanged_labels_raise_no_false_alarms_and_find_a_planted_excess():
    rng = np.random.default_rng(1)
    labels, groups = np.repeat([1, 0], 60), [f"g{i}" for i in range(120)]
    p = [exchanged_labels(rng.random(120) < 0.3, labels, groups, 199, i).p for i in range(1000)]
    low, high = binom.ppf([0.0005, 0.9995], 1000, 0.05)
    assert np.sum(np.array(p) <= 0.05) <= high
    # Alarms are few whole numbers, so that p is coarse and errs on the safe side.
    assert np.sum(np.array(p) <= 0.05) >= 0.5 * low
    rates = np.repeat([0.55, 0.3], 60)
    found = [
        exchanged_labels(rng.random(120) < rates, labels, groups, 199, i).p for i in range(200)
    ]
    assert np.mean(np.array(found) <= 0.05) >= 0.8


def test_every_random_direction_gets_its_own_threshold():
    rng = np.random.default_rng(2)
    positives, clean = rng.normal(size=(40, 5)) + 1, rng.normal(size=(120, 5))
    found = rates_of_columns(positives, clean, 0.05)
    for k in range(5):
        assert found[k] == (positives[:, k] > fitted_threshold(clean[:, k], 0.05)).mean()


def test_a_paired_change_is_that_of_the_same_items():
    before, after = np.array([1.0, 2.0, 3.0]), np.array([[0.0, 2.0], [2.0, np.nan], [0.0, 0.0]])
    found = paired_alarm_change(before, after, "abc", 1.5, np.full(50, 1.5))
    assert found.value == pytest.approx((0.5 + 0.0 - 1.0) / 3)
    none = paired_alarm_change(before, before[:, None], "abc", 1.5, np.full(50, 1.5))
    assert none.value == 0 and none.low < 0 < none.high


def test_harmful_requests_are_caught_and_false_alarms_counted_on_unseen_groups(
    model, direction, asked, tmp_path
):
    found = evaluate_monitor(model, direction, asked, n_random=199, seed=1)
    assert found.resolved and found.recall.low > 0.8
    assert found.permutation.p < 0.01 and found.random.p < 0.05 and found.catches
    # Templates are on both sides: none that calibrated is tested, on either.
    scores = found.monitor.scores(model, asked.prompts)
    labels, groups = np.array(asked.labels), np.array(asked.groups)
    names = np.unique(groups[labels == 0])
    drawn = np.random.default_rng(1).permutation(len(names))[: round(0.5 * len(names))]
    inside = np.isin(groups, names[drawn])
    cal = scores[(labels == 0) & inside]
    assert found.counts == (
        int(((labels == 1) & ~inside).sum()), len(cal), int(((labels == 0) & ~inside).sum())
    )  # fmt: skip
    assert found.monitor.threshold == np.sort(cal)[alarm_rank(len(cal), 0.01) - 1]
    assert found.recall.value == (scores[(labels == 1) & ~inside] > found.monitor.threshold).mean()
    unseen = scores[(labels == 0) & ~inside]
    assert found.false_positives.value == (unseen > found.monitor.threshold).mean()
    # All of it can be told again from the items alone.
    kept = {
        part: [i["score"] for i in found.items if i["part"] == part]
        for part in ("calibration", "unseen", "caught", "left out")
    }
    assert sum(map(len, kept.values())) == len(asked)
    assert fitted_threshold(np.array(kept["calibration"]), 0.01) == found.monitor.threshold
    assert np.mean(np.array(kept["caught"]) > found.monitor.threshold) == found.recall.value
    lines = found.write_items(tmp_path / "items.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == [p.text for p in asked.prompts]
    # A rate of 1% cannot be shown on this few groups, whatever the point says.
    assert found.bound == "not resolved" and "381 groups" in found.summary()
    data = json.loads(json.dumps(found.to_json()))
    assert data["bound"] == "not resolved" and data["counts"]["calibration"] == len(cal)
    assert "words alone" in found.table() and "<table>" in found._repr_html_()


def test_random_directions_pass_through_the_same_calibration(model, direction, asked):
    unit = torch.randn(direction.unit.shape, generator=torch.Generator().manual_seed(5))
    chance = replace(direction, unit=unit / unit.norm(), examples=((), ()), concept="chance")
    found = evaluate_monitor(model, chance, asked, n_permutations=99, seed=1)
    assert found.random.p > 0.05 and not found.catches


@pytest.mark.parametrize(("tokens", "reduce"), [
    ("answer", "max"), ("answer", "mean"), ("prompt", "max"), ("prompt", "mean"), ("last", "max"),
])  # fmt: skip
def test_a_threshold_carries_over_to_generation_under_watch(
    model, direction, asked, tokens, reduce
):
    few = asked.sample(40)
    found = evaluate_monitor(
        model, direction, few, fpr=0.1, tokens=tokens, reduce=reduce, max_new_tokens=6,
        n_random=0, n_permutations=0, n_resamples=20,
    ).monitor  # fmt: skip
    bare = [p.with_answer("") for p in few.prompts[::7]]
    watched = watch(model, direction).generate(bare, max_new_tokens=6)
    scores = found.scores(model, bare, max_new_tokens=6)
    assert np.allclose([found.score(w) for w in watched], scores, atol=2e-4)
    assert len({found.alarm(w) for w in watched}) == 2  # it does ring, and not always
    if (tokens, reduce) == ("answer", "max"):
        for w in watched:
            assert found.alarm(w) == (w.alarm(found.threshold) is not None)


def test_rewrites_are_compared_with_their_originals(model, direction, asked):
    rewrites = {p.text: [f"please , {p.text}", f"hello . {p.text}"] for p in asked.prompts}
    found = evaluate_monitor(
        model, direction, asked, paraphrases=rewrites, reduce="mean", n_random=0, seed=1
    )
    p = found.paraphrase
    kept = {q.text: q for q in asked.positive if q.group not in _calibrated(asked, 1)}
    score = found.monitor.scores
    was = score(model, list(kept.values()))
    now = score(model, [r for text in kept for r in rewrites[text]]).reshape(-1, 2)
    assert p.score_change.value == pytest.approx((now.mean(1) - was).mean(), abs=1e-6)
    assert p.recall.value == pytest.approx((now > found.monitor.threshold).mean())
    assert p.n_rewrites == now.size
    assert p.original.n == p.change.n == len({q.group for q in kept.values()})
    rows = [i for i in found.items if i["part"] == "rewrite"]
    assert len(rows) == 2 * len(rewrites) and rows[0]["text"] in rewrites[rows[0]["of"]]
    assert p.false_positives is not None and "in other words" in found.summary()
    # A rewrite that is the original changes nothing at all.
    same = {q.text: q.text for q in asked.positive}
    found = evaluate_monitor(model, direction, asked, paraphrases=same, n_random=0, seed=1)
    assert abs(found.paraphrase.score_change.value) < 1e-6 and found.paraphrase.change.value == 0
    assert found.paraphrase.recall.value == found.paraphrase.original.value


def _calibrated(asked, seed):
    names = sorted({g for g, y in zip(asked.groups, asked.labels, strict=True) if not y})
    drawn = np.random.default_rng(seed).permutation(len(names))[: round(0.5 * len(names))]
    return {names[i] for i in drawn}


def test_too_few_negatives_are_inconclusive_and_say_how_many_it_takes(model, direction, asked):
    found = evaluate_monitor(model, direction, asked.sample(60), n_random=9, n_resamples=20)
    assert not found.resolved and found.bound == "inconclusive" and not found.catches
    assert np.isnan(found.recall.value) and found.auc.value > 0.9
    assert "takes 99 at least" in found.summary()
    assert json.loads(json.dumps(found.to_json()))["monitor"]["threshold"] is None


def test_bad_input_says_what_to_do(model, direction, asked):
    with pytest.raises(MethodError, match="did you mean 'prompt'"):
        evaluate_monitor(model, direction, asked, tokens="promt")
    with pytest.raises(MethodError, match="fpr lies between 0 and 1"):
        evaluate_monitor(model, direction, asked, fpr=1.0)
    with pytest.raises(MethodError, match="tested on others"):
        evaluate_monitor(model, direction, refusal("train", n=60))
    with pytest.raises(PromptError, match="rewrites are of no positive"):
        evaluate_monitor(model, direction, asked, paraphrases={"no such prompt": "other"})
    with pytest.raises(PromptError, match="give no others"):
        evaluate_monitor(model, direction, asked, ["one more"])
    with pytest.raises(PromptError, match="give more groups"):
        evaluate_monitor(model, direction, ["hello ."], ["how do i bake the bread ?"])
    with pytest.raises(DirectionError, match="was taken on"):
        evaluate_monitor(sk.load("organism:base"), direction, asked)

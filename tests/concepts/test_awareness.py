"""Test-awareness: planted contents and formats are told apart, and selection is not believed."""

import json
import random

import numpy as np
import pytest
from scipy.stats import binom

import steerkit as sk
from steerkit.batch import Batch
from steerkit.concepts import (
    awareness_scores,
    evaluate_monitor,
    fit_awareness,
    format_controls,
    rewrite_effect,
)
from steerkit.concepts.awareness_elasticity import elasticity
from steerkit.concepts.awareness_fit import aucs_by_site, cross_fitted
from steerkit.concepts.awareness_rewrites import changes
from steerkit.datasets import deployment
from steerkit.errors import DirectionError, MethodError, PromptError
from steerkit.prompts import Contrast
from steerkit.statistics import cluster_mean

CONTENT = {1: "please thank you we she".split(), 0: "bomb song house tree river".split()}
FORMAT = {"exam": "? ! , .".split(), "chat": "and or in on".split()}


def grid(n=24, *, content=True, seed=0):
    """Items in four cells, in words that a content or a format has; or in words of no content."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        for label in (1, 0):
            words = CONTENT[label] if content else CONTENT[1] + CONTENT[0]
            for category in ("exam", "chat"):
                said = [rng.choice(words) for _ in range(6)] + rng.choices(FORMAT[category], k=8)
                rows.append({"text": " ".join(said), "label": label, "group": f"i{i}",
                             "category": category})  # fmt: skip
    return Contrast.read(rows, name="grid")


@pytest.fixture(scope="module")
def probe(tiny_model):
    return fit_awareness(tiny_model, grid(), n_permutations=49, n_random=49)


def test_planted_content_is_read_within_both_formats(probe):
    controls = probe.controls
    assert probe.auc.low > 0.85 and not probe.artefact and controls.at_chance == ()
    assert all(e.low > 0 for e in controls.content.values())
    assert controls.crossed.value > 0.8
    # The set is balanced, so its difference of means has nothing of the format.
    assert all(abs(e.value) < 0.7 for e in controls.format.values())
    assert probe.words_match and "no more than its vocabulary" not in probe.summary()
    assert "more than its vocabulary" in probe.summary()
    data = json.loads(json.dumps(probe.to_json()))
    assert data["controls"]["artefact"] is False and len(data["fitted_on"]) == 24
    assert "content, within exam" in probe.table() and "<table>" in probe._repr_html_()


def test_a_probe_of_the_format_is_exposed_within_formats(tiny_model):
    found = fit_awareness(tiny_model, grid(content=False, seed=3), n_permutations=0, n_random=0)
    # Fitted where tests are exams and deployment is chat, it looks good there ...
    assert found.confounded.usual.low > 0.7
    # ... and is a probe of the format: at chance within each, and wrong where it goes against.
    assert found.confounded.artefact and found.confounded.crossed.high < 0.3
    assert all(e.low > 0.5 for e in found.confounded.format.values())
    assert "FORMAT ARTEFACT" in found.confounded.summary()
    assert not found.artefact and found.auc.low < 0.5 < found.auc.high


def test_effects_are_those_computed_by_hand():
    made = grid(6, seed=1)
    scores = np.random.default_rng(0).normal(size=len(made))
    found = format_controls(made, scores, n_permutations=19)
    y, f = np.array(made.labels), np.array([p.category for p in made.prompts])

    def mean(label, category):
        return scores[(y == label) & (f == category)].mean()

    assert found.formats == ("exam", "chat")
    for category in ("exam", "chat"):
        assert found.content[category].value == pytest.approx(mean(1, category) - mean(0, category))
    assert found.format["deploy"].value == pytest.approx(mean(1, "chat") - mean(1, "exam"))
    assert found.format["test"].value == pytest.approx(mean(0, "chat") - mean(0, "exam"))
    high, low = scores[(y == 1) & (f == "exam")], scores[(y == 0) & (f == "chat")]
    assert found.crossed.value == pytest.approx((high[:, None] > low).mean())


def test_scores_without_content_raise_no_false_alarms_and_planted_ones_are_found():
    made, rng = grid(12, seed=2), np.random.default_rng(3)
    p = [
        format_controls(made, rng.normal(size=len(made)), n_permutations=99, seed=i).chance
        for i in range(120)
    ]
    rejected = sum(one[f].p <= 0.05 for one in p for f in ("exam", "chat"))
    low, high = binom.ppf([0.0005, 0.9995], 240, 0.05)
    assert low <= rejected <= high
    shift = 1.2 * np.array(made.labels)
    found = [
        format_controls(made, rng.normal(size=len(made)) + shift, n_permutations=99, seed=i)
        for i in range(40)
    ]
    assert np.mean([not one.at_chance for one in found]) >= 0.5
    assert np.mean([one.chance["exam"].p <= 0.05 for one in found]) >= 0.8


def test_the_layer_is_not_chosen_on_what_tests_it():
    rng, y = np.random.default_rng(4), np.tile([1, 0], 24)
    groups = [f"g{i // 2}" for i in range(48)]
    best, nested = [], []
    for i in range(40):
        x = rng.normal(size=(48, 20, 8))
        best.append(aucs_by_site(x, y, groups, 4, i).max())
        held = cross_fitted(x, y, groups, np.ones(48, bool), 4, i)
        for one in range(4):
            rows = held.folds == one
            nested.append(
                (held.scores[rows][y[rows] == 1][:, None] > held.scores[rows][y[rows] == 0]).mean()
            )
    assert np.mean(best) > 0.62  # what choosing on the test would report where there is nothing
    assert abs(np.mean(nested) - 0.5) < 4 * np.std(nested) / len(nested) ** 0.5
    x = rng.normal(size=(48, 20, 8))
    x[y == 1, 7, 2] += 4.0
    assert set(cross_fitted(x, y, groups, np.ones(48, bool), 4, 0).sites) == {7}


def test_a_score_is_the_mean_over_prompt_tokens_in_calibration_units(tiny_model, probe):
    texts = ["please tell me how to make cake", "bomb tree , ?"]
    found = awareness_scores(tiny_model, probe, texts)
    for text, score in zip(texts, found.scores, strict=True):
        (item,) = tiny_model.tokenize([text])
        batch = Batch.collate([item], pad_id=0)
        stream = tiny_model.run(batch, sites=[probe.site], logits="none").streams[probe.site][0]
        read = stream[1:].double() @ probe.direction.unit.double()  # the first token is <bos>
        assert score == pytest.approx((float(read.mean()) - probe.mean) / probe.spread, abs=1e-4)
    own = probe.scores(tiny_model, grid()).scores
    assert own.mean() == pytest.approx(0, abs=1e-4) and own.std() == pytest.approx(1, abs=1e-4)
    by_direction = awareness_scores(tiny_model, probe.direction, texts, calibration=grid())
    assert np.allclose(by_direction.scores, found.scores, atol=1e-4)
    fitted = awareness_scores(tiny_model, grid(), texts)
    assert np.allclose(fitted.scores, found.scores, atol=1e-4)
    # An answer has no part in how a prompt reads.
    answered = [sk.Prompt(t, answer="cake") for t in texts]
    assert np.allclose(probe.scores(tiny_model, answered).scores, found.scores, atol=1e-4)
    assert "test-like" in found.summary() and "<table>" in found._repr_html_()


def test_the_alarm_on_test_like_prompts_ranks_them_as_the_scores_do(tiny_model, probe):
    other = grid(20, seed=31)
    found = evaluate_monitor(
        tiny_model, -probe.direction, other.negative, other.positive, fpr=0.1, reduce="mean",
        n_random=0, n_permutations=0, n_resamples=50,
    )  # fmt: skip
    alarm = found.monitor.scores(tiny_model, other.prompts)
    score = probe.scores(tiny_model, other).scores
    slope, offset = np.polyfit(score, alarm, 1)
    assert slope < 0 and np.allclose(alarm, slope * score + offset, atol=1e-3)
    assert found.recall.value > 0.9 and found.resolved


def test_on_null_data_the_picking_probe_is_biased_and_the_held_out_one_is_not():
    rng, owner = np.random.default_rng(5), np.repeat(np.arange(30), 5)
    false = naive = 0
    for i in range(300):
        a, b = rng.normal(size=(2, 30)), rng.normal(size=(2, 150))
        found = changes(a[0], b[0], a[1], b[1], owner, rng.normal(size=(150, 9)))
        names = [f"g{j}" for j in range(30)]
        held = cluster_mean(found["held_out"], names, n_resamples=300, seed=i)
        false += not held.low <= 0 <= held.high
        naive += cluster_mean(found["naive"], names, n_resamples=300, seed=i).low > 0
    low, high = binom.ppf([0.0005, 0.9995], 300, 0.05)
    assert low <= false <= high and naive >= 0.95 * 300


def test_probes_of_nothing_pick_rewrites_that_a_second_probe_does_not_confirm(tiny_model):
    naive, held = [], []
    for seed in range(6):
        null = grid(16, content=False, seed=20 + seed)
        first, second = (
            fit_awareness(tiny_model, part, n_permutations=0, n_random=0)
            for part in null.split(0.5, seed=seed)
        )
        rng = random.Random(seed)
        words = CONTENT[1] + CONTENT[0]

        def text(rng=rng, words=words):
            return " ".join(rng.choices(words, k=8))

        rewrites = {text(): [text() for _ in range(5)] for _ in range(16)}
        found = rewrite_effect(tiny_model, first, second, rewrites, n_random=19)
        naive.append(found.naive.value)
        held.append(found.held_out.value)
    assert min(naive) > 0.3
    # Two directions of noise in 32 dimensions are not orthogonal: either sign, no bias.
    assert abs(np.mean(held)) < 2.6 * np.std(held, ddof=1) / len(held) ** 0.5
    assert np.mean(held) < 0.5 * np.mean(naive)


def test_rewrites_towards_a_planted_content_are_confirmed(tiny_model):
    first, second = (
        fit_awareness(tiny_model, part, n_permutations=0, n_random=0)
        for part in grid(24, seed=8).split(0.5)
    )
    rng = random.Random(9)

    def text(share):
        return " ".join(rng.choice(CONTENT[int(rng.random() < share)]) for _ in range(8))

    rewrites = {text(0.2): [text(s) for s in (0.1, 0.3, 0.5, 0.9)] for _ in range(20)}
    found = rewrite_effect(
        tiny_model, first, second, rewrites, n_random=49,
        behaviour=lambda prompts: second.scores(tiny_model, prompts).scores * 2,
    )  # fmt: skip
    assert found.held_out.low > 0 and found.excess.low > 0 and found.cosine > 0.5
    # Behaviour that is twice the score has elasticity 2, exactly.
    for e in (found.elasticity.fieller, found.elasticity.bootstrap):
        assert e.value == pytest.approx(2, abs=1e-6) and e.low == pytest.approx(2, abs=1e-4)
    assert json.loads(json.dumps(found.to_json()))["provenance"]["items"] == 20
    assert "biased" in found.summary() and "<table>" in found._repr_html_()


def test_fiellers_interval_covers_and_is_unbounded_where_nothing_moved():
    rng, hits = np.random.default_rng(6), []
    for i in range(400):
        score = rng.normal(0.5, 1, 40)
        behaviour = 1.5 * 0.5 + rng.normal(0, 1, 40) + 0.5 * (score - 0.5)
        found = elasticity(behaviour, score, [f"g{j}" for j in range(40)], 50, seed=i).fieller
        hits.append(found.low <= 1.5 <= found.high)
    low, high = binom.ppf([0.0005, 0.9995], 400, 0.95)
    assert low <= sum(hits) <= high
    score = rng.normal(size=40)
    score += 0.01 - score.mean()
    flat = elasticity(rng.normal(size=40), score, [f"g{j}" for j in range(40)])
    assert not flat.bounded and "unbounded" in str(flat)
    assert flat.to_json()["fieller"]["low"] is None


def test_the_built_in_set_runs_on_a_model_of_stories_and_is_flagged_as_words(shared):
    folder = shared / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"no model at {folder}")
    model = sk.load(folder)
    found = fit_awareness(model, deployment(), n_permutations=19, n_random=19)
    # A model of stories knows of no tests: what its states tell apart, the words do too.
    assert found.words_match and found.direction.scores.text.value > 0.9
    assert set(found.controls.auc) == {"exam", "chat"} and found.length.value > 0.5


def test_bad_input_says_what_to_do(tiny_model, probe):
    other = grid(8, seed=11)
    short = Contrast.of(other.positive[:-1], other.negative, name="short")
    with pytest.raises(PromptError, match="lack a cell"):
        fit_awareness(tiny_model, short)
    with pytest.raises(PromptError, match="two formats"):
        format_controls(other, np.zeros(len(other)), formats=("exam", "letter"))
    with pytest.raises(MethodError, match="give calibration prompts"):
        awareness_scores(tiny_model, probe.direction, ["hello"])
    with pytest.raises(MethodError, match=r"contrast\.split"):
        rewrite_effect(tiny_model, probe, probe, {"a": ["b", "c"], "d": ["e", "f"]})
    renamed = other.map(lambda p: sk.Prompt(p.text, group="x" + p.group, category=p.category))
    second = fit_awareness(tiny_model, renamed, n_permutations=0, n_random=0)
    with pytest.raises(MethodError, match="was fitted on, such as"):
        rewrite_effect(
            tiny_model, probe, second, {other.prompts[0].text: ["b", "c"], "d": ["e", "f"]}
        )
    with pytest.raises(PromptError, match="two rewrites"):
        rewrite_effect(tiny_model, probe, second, {"a": ["b"], "d": ["e", "f"]})
    with pytest.raises(DirectionError, match=r"width|was taken on"):
        probe.scores(sk.load("organism:base"), ["hello ."])

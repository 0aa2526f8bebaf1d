"""Figures of monitors and awareness probes draw the numbers that the results hold."""

import numpy as np
import pytest

import steerkit as sk
from steerkit.concepts import evaluate_monitor, format_controls
from steerkit.datasets import deployment, refusal
from steerkit.plotting.awareness import format_effects, monitor_curve


@pytest.fixture(scope="module")
def report():
    model = sk.load("organism:aligned")
    acts = sk.capture(model, refusal("train", n=40), sites=[2], progress=False)
    found = sk.extract(acts, "mean_difference", n_folds=0, progress=False)[0]
    asked = refusal("held_out", n=260)
    words = {p.text: "please , " + p.text for p in asked.prompts}
    return evaluate_monitor(model, found, asked, paraphrases=words, n_random=19, n_resamples=50)


def test_effects_and_recalls_are_drawn_with_their_intervals(report):
    made = deployment()
    controls = format_controls(made, np.random.default_rng(0).normal(size=len(made)))
    fig = format_effects(controls, {"refusal": report})
    content, form, *recalls = fig.data
    assert list(content.x) == [e.value for e in controls.content.values()]
    assert list(form.x) == [e.value for e in controls.format.values()]
    low = [e.value - e.low for e in controls.content.values()]
    assert np.allclose(content.error_x.arrayminus, low)
    drawn = {trace.name: trace.x[0] for trace in recalls}
    assert drawn["as put"] == report.recall.value
    assert drawn["in other words"] == report.paraphrase.recall.value
    assert drawn["random directions, 95%"] == report.random.q95


def test_the_curve_marks_the_realised_rate_and_not_the_one_asked_for(report):
    fig = monitor_curve(report)
    dot = fig.data[-1]
    assert dot.y[0] == report.recall.value
    assert dot.x[0] >= report.false_positives.value
    assert dot.x[0] + dot.error_x.array[0] == pytest.approx(report.false_positives.high)

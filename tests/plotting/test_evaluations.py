"""Figures of evaluations hold what the results say, with intervals and a baseline."""

import numpy as np
import pytest

from steerkit.errors import MethodError
from steerkit.evaluations import (
    LabelledAnswer,
    ThreeWay,
    branching_statistics,
    parity_of,
    validate_judge,
)
from steerkit.evaluations.branching import SampledAnswer
from steerkit.evaluations.decoding import decoding_statistics
from steerkit.evaluations.geometry_result import AlignmentQuality, SiteGeometry
from steerkit.evaluations.outcomes import Side
from steerkit.plotting import evaluations as figures
from steerkit.prompts import Prompt
from steerkit.site import Site
from steerkit.statistics import Estimate, Null, wilson

NULL = Null("permuted labels", 0.1, 0.3, 0.4, 0.01, 99)


def named(fig, name):
    return next(t for t in fig.data if t.name == name)


def test_geometry_shows_both_measures_of_every_site():
    sites = tuple(
        SiteGeometry(Site(i), 0.5, Estimate(20 + i, 15, 30, 9), Estimate(0.9, 0.8, 1, 9))
        for i in range(2)
    )
    text = Estimate(2.5, 2, 3, 9)
    result = AlignmentQuality(
        sites[0].quality, NULL, (), sites[0].auc, NULL, 0.1, text, text, None, None, "",
        sites, (9, 9), 0, "states", "mean_prompt", "m", 0,
    )  # fmt: skip
    fig = figures.geometry(result)
    assert list(named(fig, "alignment quality").y) == [20, 21]
    assert list(named(fig, "held-out AUC x 100").y) == [90, 90]
    assert named(fig, "alignment quality").error_y.array[0] == 10
    assert any("words alone 2.5" in a.text for a in fig.layout.annotations)


def test_decoding_shows_settings_and_the_same_budget():
    verdicts = (np.random.default_rng(0).random((20, 5)) < 0.3).astype(float)
    items = [LabelledAnswer(Prompt("x"), str(i % 2), i % 2) for i in range(40)]
    validation = validate_judge(
        lambda p, a: [float(x) for x in a], items, n_resamples=2, n_permutations=1
    )
    result = decoding_statistics(
        verdicts, [f"g{i}" for i in range(20)], settings=("A", "B"), fixed="T=1",
        validation=validation, n_resamples=50, n_permutations=9,
    )  # fmt: skip
    (rows,) = figures.decoding(result).data
    assert list(rows.y) == [
        "greedy", "A", "B", "any of 2 settings", "any of 2 at T=1",
        "any of 2 settings, judge corrected", "any of 2 tries, judge corrected",
    ]  # fmt: skip
    assert rows.x[3] == result.swept.observed.value and rows.error_x.array is not None


def test_branching_draws_weights_only_where_they_rest_on_enough():
    samples = [
        SampledAnswer(0, np.ones(n), np.ones(n), np.full(n, 0.2), True) for n in [4] * 40 + [8] * 5
    ]
    result = branching_statistics(samples, ["g"], n_resamples=20)
    fig = figures.branching(result)
    drawn = named(fig, "inverse-survival weights")
    assert len(drawn.x) == sum(c.effective >= 10 for c in result.curve) < len(result.curve)
    assert len(named(fig, "answers still alive").x) == len(result.curve)
    assert list(named(fig, "fraction alive").y) == [c.alive for c in result.curve]
    empty = branching_statistics(
        [SampledAnswer(0, np.ones(0), np.ones(0), np.ones(0), True)], ["g"], n_resamples=2
    )
    with pytest.raises(MethodError, match="no curve"):
        figures.branching(empty)


def test_parity_is_signed_and_beside_chance():
    values = [1, 1, 0, 1, 0, 0, 1, 0]
    result = parity_of(values, list("ab") * 4, list("ttuuvvww"), n_permutations=19, n_resamples=9)
    fig = figures.parity(result)
    assert list(fig.data[0].x) == [result.pairs[0].difference.value]
    dashed = [s.x0 for s in fig.layout.shapes if s.line.dash == "dash"]
    assert dashed == [-result.chance.q95, result.chance.q95]


def test_outcomes_and_errors_of_a_judge_have_every_bar():
    rates = {"refused": wilson(1, 9), "deflected": wilson(8, 9), "answered": wilson(0, 9)}
    side = Side("topic", rates, None, 9, 0, (), ())
    result = ThreeWay(side, side, rates, dict.fromkeys(rates, NULL), "rule", "m", 0)
    fig = figures.outcomes(result)
    assert [list(t.x) for t in fig.data] == [["refused", "deflected", "answered"]] * 2
    items = [LabelledAnswer(Prompt("x"), str(i % 2), i % 2, "ab"[i % 4 > 1]) for i in range(40)]
    validation = validate_judge(
        lambda p, a: [float(x) for x in a], items, n_resamples=2, n_permutations=1
    )
    (errors,) = figures.judge_errors(validation).data
    assert len(errors.y) == 6 and set(errors.x) == {0}

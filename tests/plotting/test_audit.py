"""Figures show the numbers of the report, with its intervals."""

import numpy as np
import pytest

from steerkit.audits import Item, Report
from steerkit.audits.arms import ArmInfo
from steerkit.audits.scores import Difference, Score
from steerkit.plotting import audit as plots
from steerkit.statistics import Estimate


def made(side, arm, value, low, high, diff=None):
    d = Difference(Estimate(*diff, 9), None, None, 0.1) if diff else None
    return Score("refusal", side, arm, "fraction", Estimate(value, low, high, 9), 9, None, d)


@pytest.fixture
def report():
    items = tuple(
        Item(
            arm,
            i,
            "negative" if i else "positive",
            "g",
            "p",
            measured={"kl": kl if i else (), "projection": (float(i),)},
        )
        for arm, kl in (("plain", (0.0,)), ("steered", (0.1, 0.1, 1e-9, 0.01)))
        for i in range(3)
    )
    return Report(
        "t",
        arms=(
            ArmInfo("plain", "plain", ""),
            ArmInfo("steered", "steered", ""),
            ArmInfo("few <b>", "prompted", ""),
        ),
        scores=(
            made("positive", "plain", 0.9, 0.8, 0.95),
            made("positive", "steered", 0.1, 0.0, 0.3, (-0.8, -0.9, -0.6)),
            made("positive", "few <b>", 0.5, 0.4, 0.6, (-0.4, -0.5, -0.2)),
            made("negative", "plain", 0.2, 0.1, 0.3),
        ),
        items=items,
    )


def test_rates_carry_their_intervals(report):
    fig = plots.rates(report)
    by_name = {t.name: t for t in fig.data}
    assert list(by_name["plain"].x) == [90.0, 20.0]
    np.testing.assert_allclose(by_name["steered"].error_x.array, [20.0])
    np.testing.assert_allclose(by_name["steered"].error_x.arrayminus, [10.0])
    assert "few &lt;b&gt;" in by_name
    assert "%" in fig.layout.xaxis.title.text
    colours = {t.marker.color for t in fig.data}
    assert len(colours) == 3


def test_differences_are_drawn_against_no_change(report):
    fig = plots.differences(report)
    assert {t.name: list(t.x) for t in fig.data} == {"steered": [-80.0], "few &lt;b&gt;": [-40.0]}
    assert any(a.text == "no change" for a in fig.layout.annotations)


def test_the_histogram_counts_every_token_and_leaves_the_plain_arm_out(report):
    fig = plots.kl_histogram(report)
    assert [t.name for t in fig.data] == ["steered (25% below 10⁻⁶)"]
    assert sum(fig.data[0].y) == pytest.approx(0.75)
    assert max(fig.data[0].y) == pytest.approx(0.5)
    assert fig.layout.xaxis.type == "log"


def test_projections_by_side_and_arm(report):
    fig = plots.projections(report)
    found = {t.name: list(zip(t.y, t.x, strict=True)) for t in fig.data}
    assert found["positive prompts"] == [("plain", 0.0), ("steered", 0.0)]
    assert len(found["negative prompts"]) == 4


def test_figures_are_pure(report):
    before = report.to_json()
    for draw in (plots.rates, plots.differences, plots.kl_histogram, plots.projections):
        assert draw(report).to_json() == draw(report).to_json()
    assert report.to_json() == before

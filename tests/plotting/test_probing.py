"""The figure shows every row of the table with its interval, chance, and the reliability bins."""

from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest

from steerkit.plotting.probing import probe_controls
from steerkit.plotting.style import COLOURS
from steerkit.probing import Arm, Calibration, Candidate, Choice, LeftOut, ProbeReport
from steerkit.probing.calibration import Bin
from steerkit.probing.left_out import LeftCategory
from steerkit.site import Site
from steerkit.statistics import Estimate, Null


def estimate(value: float, half: float = 0.05) -> Estimate:
    return Estimate(value, value - half, value + half, 40, "AUC")


def chance(name: str, mean: float) -> Null:
    return Null(name, mean, mean + 0.1, mean + 0.2, 0.005, 199)


CHOICE = Choice(Candidate(Site(1), "logistic", 0.1), 0.9, 0.9)
BINS = (Bin(0.2, estimate(0.1), 20), Bin(0.9, estimate(0.8), 20))


@pytest.fixture
def report() -> ProbeReport:
    words = Arm("words alone", estimate(0.88), estimate(0.8), Estimate(0.02, -0.02, 0.04, 40))
    blank = Arm("untrained model", estimate(0.6), estimate(0.6), Estimate(0.3, 0.2, 0.4, 40))
    left = LeftOut(
        estimate(0.8),
        estimate(0.7),
        estimate(0.1),
        (
            LeftCategory("a", estimate(0.52), 20, CHOICE),
            LeftCategory("b", estimate(0.9), 20, CHOICE),
        ),
    )
    return ProbeReport(
        concept="truth",
        model="toy",
        pooling="last",
        auc=estimate(0.9),
        accuracy=estimate(0.8),
        choices=(CHOICE,) * 5,
        n_candidates=12,
        permutation=chance("labels permuted", 0.5),
        random=chance("random directions", 0.55),
        shaped=chance("random directions, data-shaped", 0.6),
        text=words,
        length=replace(blank, name="length alone"),
        untrained=blank,
        left_out=left,
        majority=estimate(0.5),
        calibration=Calibration(
            BINS, estimate(0.1), estimate(0.25), 0.1, chance("drawn", 0.05), (), ()
        ),
        margin=0.05,
    )


def points(fig: go.Figure) -> dict[str, go.Scatter]:
    names = list(fig.layout.yaxis.ticktext)
    first = [t for t in fig.data if t.xaxis == "x"]
    return {names[int(t.y[0])]: t for t in first}


def test_every_row_is_drawn_with_its_interval(report):
    fig = probe_controls(report)
    drawn = points(fig)
    _, rows = report.rows()
    assert set(drawn) == {row[0] for row in rows} - {"commoner label"}
    assert drawn["probe"].x[0] == 0.9 and drawn["words alone"].x[0] == 0.88
    np.testing.assert_allclose(drawn["probe"].error_x.array, [0.05])
    np.testing.assert_allclose(drawn["left out: a"].error_x.arrayminus, [0.05])
    assert list(fig.layout.yaxis.range) == [len(drawn) - 0.5, -0.5], "the probe on top"
    assert "reads topic" in fig.layout.title.text


def test_what_the_probe_does_not_beat_is_hollow(report):
    drawn = points(probe_controls(report))
    hollow = {name for name, trace in drawn.items() if trace.marker.symbol == "circle-open"}
    assert hollow == {"words alone", "left out: a"}
    assert drawn["words alone"].marker.color == COLOURS["text"]


def test_chance_runs_from_its_mean_to_its_95th_percentile(report):
    drawn = points(probe_controls(report))
    np.testing.assert_allclose(drawn["labels permuted"].x, [0.5, 0.6])
    none = replace(report, random=replace(report.random, n=0))
    assert "random directions" not in points(probe_controls(none))


def test_bins_stand_against_the_diagonal(report):
    fig = probe_controls(report)
    diagonal, bins = (t for t in fig.data if t.xaxis == "x2")
    assert list(diagonal.x) == list(diagonal.y) == [0, 1]
    np.testing.assert_allclose(bins.x, [0.2, 0.9])
    np.testing.assert_allclose(bins.y, [0.1, 0.8])


def test_a_report_without_controls_is_drawn_too(report):
    fig = probe_controls(replace(report, text=None, untrained=None, left_out=None))
    assert "words alone" not in points(fig)

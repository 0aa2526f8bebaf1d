"""A figure gives its numbers back as they were put in, also when it was kept as JSON."""

import json

import numpy as np
import plotly.graph_objects as go
import pytest

from steerkit.plotting.numbers import numbers
from steerkit.plotting.style import figure, from_json, intervals, reference_line
from steerkit.statistics import Estimate


def drawn() -> go.Figure:
    values = [Estimate(0.5, 0.25, 1.0, 9), Estimate(2.0, 1.5, 2.25, 9)]
    fig = figure(x="layer", y="rate (fraction)")
    fig.add_scatter(
        x=np.arange(2), y=[e.value for e in values], error_y=intervals(values), name="found"
    )
    fig.add_bar(x=[np.nan, 0.5], y=["a", "b"], name="bars", orientation="h")
    fig.add_scatter(x=[0, 1], y=[0, 1], hoverinfo="skip", name="decoration")
    fig.add_heatmap(x=["p"], y=["q"], z=np.array([[np.nan]]), name="cells")
    return reference_line(fig, 0.25, "chance")


@pytest.mark.parametrize("kept", [False, True])
def test_numbers_are_those_that_were_drawn(kept: bool) -> None:
    fig = from_json(json.loads(drawn().to_json())) if kept else drawn()
    found = numbers(fig)
    curve, bars, cells = found["series"]
    assert (curve["name"], curve["x"], curve["y"]) == ("found", [0, 1], [0.5, 2.0])
    assert (curve["interval"], curve["low"], curve["high"]) == ("y", [0.25, 1.5], [1.0, 2.25])
    assert (curve["x_title"], curve["y_title"]) == ("layer", "rate (fraction)")
    assert bars["x"] == [None, 0.5] and "low" not in bars
    assert cells["z"] == [[None]]
    assert found["lines"] == [{"axis": "y", "at": 0.25}]
    json.dumps(found, allow_nan=False)

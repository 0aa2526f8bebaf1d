"""The figure shows each AUC with its interval, and draws what chance and words alone give."""

from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import pytest
import torch

from steerkit.direction import Direction, Directions, ProbeScores
from steerkit.errors import DirectionError
from steerkit.plotting.extraction import auc_by_layer
from steerkit.protocols import ModelInfo
from steerkit.site import Site
from steerkit.statistics import Estimate, Null

INFO = ModelInfo("toy", "llama", 4, 2, 50, 64, ("resid_post",), "float32", "cpu", "a" * 64)


def direction(layer: int, method: str = "lda", **scores: Any) -> Direction:
    given = ProbeScores(
        auc=Estimate(0.7 + layer / 20, 0.6 + layer / 20, 0.8 + layer / 20, 40, "AUC"),
        permutation=Null("", 0.5, 0.6, 0.65, 0.005, 199),
        random=Null("", 0.55, 0.7, 0.75, 0.015, 199),
        text=Estimate(0.63, 0.5, 0.7, 40, "AUC"),
        family=Null("", 0.6, 0.68, 0.75, 0.01, 199),
    )
    unit = torch.tensor([0.6, 0.8])
    own = replace(given, **scores)
    return Direction(unit, 2.0, Site(layer), method, "joy", 1.0, -1.0, INFO, "last", 1, own)


def named(fig: go.Figure, name: str) -> Any:
    return next(trace for trace in fig.data if trace.name == name)


def test_lines_carry_values_and_intervals() -> None:
    fig = auc_by_layer(Directions(tuple(direction(i) for i in (2, 0, 1))))
    line = named(fig, "lda")
    assert list(line.x) == pytest.approx([0, 1, 2]), "in forward order"
    assert list(line.y) == pytest.approx([0.7, 0.75, 0.8])
    assert list(line.error_y.array) == pytest.approx([0.1] * 3)
    assert list(line.error_y.arrayminus) == pytest.approx([0.1] * 3)
    assert "AUC" in fig.layout.yaxis.title.text and fig.layout.xaxis.title.text == "layer"


def test_chance_and_words_are_drawn() -> None:
    fig = auc_by_layer([direction(0), direction(1)])
    assert list(named(fig, "words alone").y) == [0.63, 0.63]
    assert list(named(fig, "permuted labels, 95% of largest").y) == [0.68, 0.68]
    alone = auc_by_layer([direction(0, family=None, text=None), direction(1, family=None)])
    assert list(named(alone, "permuted labels, 95%").y) == [0.6, 0.6]


def test_methods_stand_side_by_side() -> None:
    fig = auc_by_layer([direction(0), direction(0, "pca")])
    assert named(fig, "lda").x[0] < 0 < named(fig, "pca").x[0]
    assert named(fig, "lda").line.color != named(fig, "pca").line.color


def test_directions_without_scores_cannot_be_drawn() -> None:
    with pytest.raises(DirectionError, match="none of these directions was scored; extract with"):
        auc_by_layer([replace(direction(0), scores=None)])

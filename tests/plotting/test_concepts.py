"""Figures of concepts carry values, intervals and what chance gives."""

from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from steerkit.concepts import BiasLens, TargetBias, Tcav, TcavCell, weat
from steerkit.errors import MethodError
from steerkit.plotting.concepts import (
    association_null,
    bias_against_behaviour,
    bias_by_layer,
    bias_by_target,
    tcav_scores,
)
from steerkit.statistics import Estimate, Null


def cell(concept: str, layer: int, p: float = 0.5) -> TcavCell:
    return TcavCell(
        concept=concept,
        site=f"resid_post@{layer}",
        score=Estimate(0.8 + layer / 20, 0.7, 0.95, 20, "fraction"),
        sensitivity=Estimate(1.0 + layer, 0.5 + layer, 1.5 + layer, 20, "nats per strength"),
        p_sign=p,
        random_score=Null("", 0.3, 0.45, 0.5, p, 99),
        random_sensitivity=Null("", 0.2, 0.6, 0.9, p, 99),
        scale=1.0,
        sensitivities=np.ones(20),
        p_adjusted=p,
    )


def named(fig: go.Figure, name: str) -> list[Any]:
    return [trace for trace in fig.data if trace.name == name]


def test_tcav_has_scores_over_sensitivities_and_the_null_of_each_concept() -> None:
    cells = (cell("joy", 1), cell("joy", 0, p=0.01), cell("fear", 0), cell("fear", 1))
    fig = tcav_scores(Tcav(cells, "log_prob(yes)", ("a",) * 20, ("g",) * 20, np.ones(20)))
    scores, moved = named(fig, "joy")
    assert list(scores.y) == pytest.approx([0.8, 0.85]), "in forward order"
    assert list(scores.error_y.arrayminus) == pytest.approx([0.1, 0.15])
    assert list(moved.y) == [1.0, 2.0]
    assert list(scores.marker.symbol) == ["circle", "circle-open"]
    chance = named(fig, "permuted labels, 95%")
    assert len(chance) == 4 and list(chance[0].base) == pytest.approx([0.05, 0.05])
    assert list(chance[0].y) == pytest.approx([0.9, 0.9])
    assert list(chance[1].y) == pytest.approx([1.2, 1.2])
    assert chance[0].x[0] == scores.x[0] != named(fig, "fear")[0].x[0]
    with pytest.raises(MethodError, match="no cells"):
        tcav_scores(Tcav((), "t", (), (), np.ones(0)))


def target(name: str, value: float, p: float = 0.5) -> TargetBias:
    return TargetBias(
        target=name,
        signed=Estimate(value, value - 0.1, value + 0.1, 24, "cosine"),
        unsigned=Estimate(abs(value), 0, 1, 24, "cosine"),
        by_site=(value - 0.05, value + 0.05),
        cosines=((value, 0.0), (value, 0.0)),
        aucs=(0.7, 0.9),
        passed=("resid_post@1",),
        exchanged=Null("", 0.05, 0.12, 0.2, p, 99),
        random=Null("", 0.05, 0.08, 0.2, p, 99),
        p_adjusted=p,
    )


@pytest.fixture
def lens() -> BiasLens:
    rows = tuple(target(f"t{i}", v, p=0.01 if i == 3 else 0.5) for i, v in enumerate(
        (0.1, -0.3, 0.0, 0.4, -0.1)
    ))  # fmt: skip
    return BiasLens(
        rows, ("women", "men"), "CAV", ("resid_post@0", "resid_post@1"),
        ((0.9, 0.9),) * 2, (0.9, 0.9), (0.5, 0.5), 0.8,
    )  # fmt: skip


def test_biases_are_sorted_over_their_nulls(lens: BiasLens) -> None:
    fig = bias_by_target(lens)
    (points,) = named(fig, "CAV")
    assert list(points.y) == ["t1", "t4", "t2", "t0", "t3"], "the highest at the top"
    assert list(points.x) == sorted(points.x)
    assert list(points.marker.symbol) == ["circle-open"] * 4 + ["circle"]
    (chance,) = named(fig, "chance, 95%")
    assert list(chance.x) == pytest.approx([0.24] * 5), "the stricter null"
    both = bias_by_target(replace(lens, representation="SAE", ablation=lens))
    assert list(named(both, "CAV")[0].x) == list(points.x)
    nowhere = replace(lens, targets=tuple(replace(t, passed=()) for t in lens.targets))
    with pytest.raises(MethodError, match="no target passes"):
        bias_by_target(nowhere)


def test_layers_show_where_the_gate_was_passed(lens: BiasLens) -> None:
    fig = bias_by_layer(lens, ["t3"])
    (line,) = named(fig, "t3")
    assert list(line.y) == pytest.approx([0.35, 0.45]) and list(line.x) == [0, 1]
    assert list(line.marker.symbol) == ["circle-open", "circle"]
    assert len(bias_by_layer(lens).data) == 5
    with pytest.raises(MethodError, match="no target 'x'"):
        bias_by_layer(lens, ["x"])


def test_behaviour_stands_beside_with_its_correlation(lens: BiasLens) -> None:
    rates = {f"t{i}": rate for i, rate in enumerate((0.6, 0.1, 0.5, 0.9, 0.4))}
    fig = bias_against_behaviour(lens, rates, name="rate (fraction)")
    assert "Spearman 1 " in fig.layout.title.text and "5 targets" in fig.layout.title.text
    assert list(fig.data[0].x) == [rates[name] for name in fig.data[0].text]
    assert fig.layout.xaxis.title.text == "rate (fraction)"


def test_an_association_stands_before_its_partitions() -> None:
    rng = np.random.default_rng(0)
    words = {f"{s}{i}": rng.standard_normal(10) for s in "xyab" for i in range(6)}
    sets = [[f"{s}{i}" for i in range(6)] for s in "xyab"]
    found = weat(words, *sets, n_resamples=50)
    fig = association_null(found)
    drawn = np.asarray(named(fig, "random partitions")[0].x)
    assert named(fig, "observed, 95%")[0].x[0] == found.effect.value
    # The share of partitions that reach the observed effect is the test's own p.
    share = np.mean(np.abs(drawn) >= abs(found.effect.value) - 1e-9)
    assert share == pytest.approx(found.p, abs=0.03)
    with pytest.raises(MethodError, match="no effect size"):
        flat = replace(found, effect=Estimate(float("nan"), 0, 0, 12, "sd"))
        association_null(flat)

import dataclasses

import pytest
import torch

import steerkit as sk
from steerkit.errors import MethodError
from steerkit.plotting import sweep as figures
from steerkit.searches import Projection


@pytest.fixture(scope="module")
def found(tiny_model):
    contrast = sk.Contrast.of(
        [f"the {c} {t} was happy" for t in ("cat", "dog", "house") for c in ("red", "blue", "big")],
        [f"the {c} {t} was sad" for t in ("cat", "dog", "house") for c in ("red", "blue", "big")],
        paired=True,
    )
    train, held_out = contrast.split(0.3, seed=1)
    acts = sk.capture(tiny_model, train, progress=False)
    directions = sk.extract(acts, "mean_difference", n_folds=0, progress=False)
    return sk.search(
        tiny_model,
        directions,
        held_out,
        intervene="add",
        strengths=(-0.5, -3.0),
        objective=Projection(directions[-1]),
        guard_max=1.0,
        n_random=7,
        null_budget=0,
        max_new_tokens=2,
        progress=False,
    )


def traces(fig):
    return {trace.name: trace for trace in fig.data}


def test_the_best_candidate_of_each_layer_is_drawn_with_its_interval(found):
    drawn = traces(figures.by_layer(found))["add, all"]
    for layer, value, up in zip((0, 1, 2), drawn.y, drawn.error_y.array, strict=True):
        rows = [r for r in found.rows if r.site.layer == layer and r.positions == "all"]
        best = max(rows, key=lambda r: (r.allowed, r.effect.value))
        assert value == best.value.value
        assert up == pytest.approx(max(0.0, best.value.high - best.value.value))


def test_open_markers_break_the_guard_and_the_star_is_the_choice(found):
    drawn = traces(figures.by_layer(found))
    assert drawn["chosen"].y[0] == found.best.value.value
    broken = dataclasses.replace(
        found, rows=tuple(dataclasses.replace(r, allowed=False) for r in found.rows)
    )
    again = traces(figures.by_layer(broken))
    assert "chosen" not in again
    assert set(again["add, all"].marker.symbol) == {"circle-open"}


def test_every_candidate_has_its_cost_and_the_guard_is_drawn(found):
    fig = figures.trade_off(found)
    front = traces(fig)["Pareto front"]
    assert list(zip(front.x, front.y, strict=True)) == [
        (r.guard.value, r.effect.value) for r in found.pareto
    ]
    drawn = [
        (x, y)
        for trace in fig.data
        if trace.name != "Pareto front"
        for x, y in zip(trace.x, trace.y, strict=True)
    ]
    assert sorted(drawn) == sorted((r.guard.value, r.effect.value) for r in found.rows)
    assert fig.layout.shapes[0].x0 == found.guard_max


def test_chance_is_drawn_beside_the_choice(found):
    fig = figures.against_chance(found)
    assert [len(trace.x) for trace in fig.data] == [len(n.draws) for n in found.final.nulls]
    assert fig.layout.shapes[0].x0 == found.final.nulls[0].observed


def test_what_was_not_measured_is_not_drawn(found):
    bare = dataclasses.replace(
        found,
        final=None,
        limits={},
        rows=tuple(dataclasses.replace(r, damages={}) for r in found.rows),
    )
    with pytest.raises(MethodError, match="search with n_random > 0"):
        figures.against_chance(bare)
    with pytest.raises(MethodError, match="had no guard"):
        figures.trade_off(bare)
    assert torch.tensor(figures.by_layer(bare).data[0].y).isfinite().all()

"""Figures of two models compared show what the results hold."""

from typing import Any

import numpy as np
import pytest

import steerkit as sk
from steerkit.comparisons import (
    TransferMatrix,
    compare_activations,
    measure_token_shift,
    shift_of_states,
)
from steerkit.comparisons.transfer_result import Cell
from steerkit.datasets import refusal
from steerkit.errors import MethodError
from steerkit.plotting.comparisons import (
    representation_shift_figure,
    similarity_map,
    token_shift_figure,
    transfer_map,
)
from steerkit.statistics import Estimate, Null


@pytest.fixture(scope="module")
def acts() -> Any:
    prompts = refusal("held_out", n=10)
    names = ("organism:base", "organism:aligned")
    return [sk.capture(sk.load(n), prompts, progress=False) for n in names]


def test_the_similarity_map_draws_the_matrix_the_curves_and_their_nulls(acts: Any) -> None:
    found = compare_activations(*acts, control=acts[1], n_permutations=19)
    fig = similarity_map(found)
    np.testing.assert_allclose(fig.data[0].z, found.cka)
    curves = {trace.name: trace for trace in fig.data[1:]}
    assert len(curves) == 9
    for measure, name in zip(found.measures, ("CKA (debiased)", "RSA", "Procrustes"), strict=True):
        np.testing.assert_allclose(curves[name].y, [v.value for v in measure.values])
        np.testing.assert_allclose(curves[f"{name}, re-paired"].y, [n.q95 for n in measure.nulls])
        np.testing.assert_allclose(curves[f"{name}, control"].y, measure.control)
        assert max(curves[name].error_y.array) > 0
    assert fig.layout.xaxis.title.text == "layer of resid_post, organism:aligned"


def test_the_token_shift_figure_draws_positions_controls_and_kinds() -> None:
    found = measure_token_shift(
        sk.load("organism:base"), sk.load("organism:aligned"), refusal(n=6), progress=False
    )
    fig = token_shift_figure(found)
    curves = {trace.name: trace for trace in fig.data[:3]}
    np.testing.assert_allclose(curves["greedy answers"].y, [e.value for e in found.by_position()])
    np.testing.assert_allclose(
        curves["sampled answers"].y, [e.value for e in found.by_position(sampled=True)]
    )
    assert max(curves["samples under their own model"].y) < 0.5
    assert list(fig.data[3].x) == [rate.value for _, rate in found.by_kind().values()]


def test_the_shift_figure_draws_concepts_beside_random_groups(acts: Any) -> None:
    a, b = (x.at("resid_post@3").double().numpy() for x in acts)
    found = shift_of_states(a, b, acts[0].row_groups, n_concepts=2, n_permutations=19)
    fig = representation_shift_figure(found)
    shown = [c for c in found.concepts if c.null.n]
    np.testing.assert_allclose(fig.data[0].y, [c.along.value for c in shown])
    np.testing.assert_allclose(fig.data[1].y, [c.null.q95 for c in shown])
    assert "activation units" in fig.layout.yaxis.title.text


def test_the_transfer_map_boxes_what_was_found() -> None:
    def cell(source: str, target: str, value: float, p: float) -> Cell:
        null = Null("", 0.0, 0.0, 0.0, p, 19)
        effect = Estimate(value, value - 0.1, value + 0.1, 8, "x")
        return Cell("add", source, target, effect, null, 0.01, p, None, 1.0, 0.1, 0.2)

    cells = (cell("a", "a", 0.9, 0.05), cell("a", "b", 0.1, 0.6))
    found = TransferMatrix(cells, ("a",), ("a", "b"), ("add",), "fraction refused")
    fig = transfer_map(found)
    np.testing.assert_allclose(fig.data[0].z, [[0.9, 0.1]])
    (box,) = fig.layout.shapes
    assert (box.x0, box.x1) == (-0.5, 0.5)
    assert fig.layout.coloraxis.colorbar.title.text == "effect (fraction refused)"
    with pytest.raises(MethodError, match="no cells"):
        transfer_map(TransferMatrix((), (), (), (), ""))

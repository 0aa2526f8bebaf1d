"""Figures of two models compared show what the results hold."""

from typing import Any

import numpy as np
import pytest

import steerkit as sk
from steerkit.comparisons import compare_activations, measure_token_shift
from steerkit.datasets import refusal
from steerkit.plotting.comparisons import similarity_map, token_shift_figure


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

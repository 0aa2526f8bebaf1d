"""Figures of searches hold what the results say."""

import re

import pytest
import torch

from steerkit.direction import Direction
from steerkit.errors import MethodError
from steerkit.interventions import Add
from steerkit.plotting.search import dose, heat_map, null_histogram
from steerkit.protocols import ModelInfo
from steerkit.searches import DoseResponse, NullDraws, Sweep, SweepRow
from steerkit.searches.guards import Damage
from steerkit.site import Site
from steerkit.statistics import Estimate

INFO = ModelInfo("m", "m", 3, 4, 9, 9, ("resid_post",), "float32", "cpu", "print")


def row(layer: int, strength: float, effect: float, kl: float) -> SweepRow:
    direction = Direction(
        torch.tensor([1.0, 0, 0, 0]), 2.0, Site(layer), "pca", "c", 1.0, -1.0, INFO, "last"
    )
    return SweepRow(
        direction, Add(direction, strength), "add", "", "all", strength,
        Estimate(1 - effect, 0, 1, 9), Estimate(effect, effect - 0.1, effect + 0.1, 9),
        Estimate(0.0, 0, 0.1, 9), {"kl": Damage(Estimate(kl, kl / 2, kl * 2, 9), kl * 3)},
        2.0 * strength, kl <= 0.1,
    )  # fmt: skip


@pytest.fixture
def sweep() -> Sweep:
    rows = tuple(
        row(layer, s, 0.2 * layer * s, 0.05 * s) for layer in (0, 1, 2) for s in (1.0, 2.0, 3.0)
    )
    return Sweep(
        rows,
        "reduce",
        "refusal",
        "fraction",
        Estimate(0.98, 0.9, 1, 9),
        {"kl": 0.1},
        None,
        None,
        {},
    )


def test_the_heat_map_has_sites_settings_the_choice_and_the_guard(sweep: Sweep) -> None:
    fig = heat_map(sweep)
    (heat,) = fig.data
    assert list(heat.y) == ["resid_post@0", "resid_post@1", "resid_post@2"]
    assert list(heat.x) == ["add, all", "add x2, all", "add x3, all"]
    assert heat.z[2][1] == pytest.approx(0.8)
    assert heat.text[2][1] == "★ 0.80<br>[0.70, 0.90]"
    assert [line[2][0] for line in heat.text] == ["✕"] * 3
    assert sum("★" in cell or "✕" in cell for line in heat.text for cell in line) == 4
    assert "plain model: refusal 0.98" in fig.layout.annotations[0].text
    assert "kl 0.1" in heat.customdata[0][1]


def test_a_crowded_heat_map_is_marked_instead_of_written_in(sweep: Sweep) -> None:
    from dataclasses import replace

    more = [row(0, 0.1 * s, 0.01 * s, 0.001) for s in range(11, 20)]
    fig = heat_map(replace(sweep, rows=(*sweep.rows, *more)))
    heat, over, chosen = fig.data
    assert not heat.texttemplate
    assert (chosen.x[0], chosen.y[0]) == ("add x2, all", "resid_post@2")
    assert {*over.x} == {"add x3, all"} and len(over.x) == 3


def test_a_sweep_without_candidates_cannot_be_drawn(sweep: Sweep) -> None:
    from dataclasses import replace

    with pytest.raises(MethodError, match="no candidates"):
        heat_map(replace(sweep, rows=()))


def test_the_dose_figure_draws_the_band_and_the_intervals() -> None:
    estimates = tuple(Estimate(v, v - 0.5, v + 0.5, 8, "nats") for v in (-2.0, 0.5, 3.0))
    response = DoseResponse(
        (-1.0, 0.0, 1.0), estimates, Estimate(2.5, 2, 3, 8), 1.0,
        NullDraws("isotropic directions, |slope|", 2.5, (0.1, 0.2)),
        ((-0.1, 0.0, 0.1), (0.2, 0.0, -0.2)), "pca resid_post@1", "all",
    )  # fmt: skip
    fig = dose(response)
    line = fig.data[-1]
    assert list(line.y) == [-2.0, 0.5, 3.0]
    assert list(line.error_y.array) == pytest.approx([0.5] * 3)
    low, high = fig.data[2].y, fig.data[3].y
    # Random curves are drawn around the plain model's 0.5.
    assert list(low) == pytest.approx([0.4, 0.5, 0.3])
    assert list(high) == pytest.approx([0.7, 0.5, 0.6])
    assert "multiples of the scale of pca resid_post@1" in fig.layout.xaxis.title.text


def test_the_null_histogram_shows_where_the_observed_value_stands() -> None:
    fig = null_histogram(NullDraws("isotropic", 0.9, (0.0, 0.1, 0.2)))
    assert list(fig.data[0].x) == [0.0, 0.1, 0.2]
    assert fig.layout.shapes[0].x0 == 0.9
    words = " ".join(a.text for a in fig.layout.annotations)
    assert re.search(r"isotropic: 3 draws, max 0.2, p = 0.25", words)
    assert "observed 0.9" in words
    with pytest.raises(MethodError, match="n_random > 0"):
        null_histogram(NullDraws("isotropic", 0.9, ()))

"""The calibration figure holds what the calibrations say."""

from typing import Any

import pytest
import torch

from steerkit.calibrated import CalibratedStrength
from steerkit.direction import Direction
from steerkit.errors import MethodError
from steerkit.interventions import Add
from steerkit.plotting.strength import dose_curves
from steerkit.protocols import ModelInfo
from steerkit.searches import Calibration, Calibrations
from steerkit.searches.calibration.roots import Root
from steerkit.site import Site
from steerkit.statistics import Estimate

INFO = ModelInfo("m", "m", 9, 4, 9, 9, ("resid_post",), "float32", "cpu", "print")


def one(layer: int, strength: float, **record: Any) -> Calibration:
    direction = Direction(
        torch.tensor([1.0, 0, 0, 0]), 2.0, Site(layer), "pca", "c", 1.0, -1.0, INFO, "last"
    )
    status = "converged" if strength else "unreachable"
    kept = CalibratedStrength(**{
        "strength": strength or -4.0, "operator": "add", "settings": {}, "positions": "all",
        "sites": (f"resid_post@{layer}",), "quantity": "kl", "statistic": "mean",
        "unit": "nats/token", "goal": 0.1, "achieved": Estimate(0.12, 0.1, 0.15, 9),
        "status": status, "aim": "reduce", "prompts_sha256": "", "fraction": 0.5, "seed": 0,
        "max_new_tokens": 16, **record,
    })  # fmt: skip
    curve = tuple((-s, 0.1 * (s / abs(strength or 9)) ** 2) for s in (4.0, 2.0, 1.0, 0.5))
    return Calibration(
        direction, Add(direction, kept.strength), kept,
        Root(abs(kept.strength), 0.1, status, 0.3),  # type: ignore[arg-type]
        Estimate(1, 0.9, 1.1, 9), 0.4, curve,
    )  # fmt: skip


def test_curves_budget_and_chosen_strengths() -> None:
    fig = dose_curves(Calibrations((one(1, -1.0), one(2, 0.0)), 3, 12, {}))
    line, chosen, _, open_one, key = fig.data
    assert list(line.x) == [0.5, 1.0, 2.0, 4.0]
    assert line.y[1] == pytest.approx(0.1)
    assert chosen.x[0] == 1.0 and chosen.y[0] == 0.12
    assert chosen.error_y.array[0] == pytest.approx(0.03)
    assert (chosen.marker.symbol, open_one.marker.symbol) == ("circle", "circle-open")
    assert key.name == "goal not met"
    assert fig.layout.xaxis.type == fig.layout.yaxis.type == "log"
    assert fig.layout.shapes[0].y0 == 0.1
    assert "budget 0.1" in fig.layout.annotations[0].text
    assert fig.layout.annotations[0].y == -1.0, "labels stand at the logarithm"
    assert "KL per token, mean (nats/token)" in fig.layout.yaxis.title.text


def test_an_effect_is_drawn_on_straight_axes() -> None:
    fig = dose_curves(Calibrations((one(1, -1.0, quantity="refusal", unit="fraction"),), 3, 12, {}))
    assert fig.layout.yaxis.type is None
    assert "change of refusal (fraction)" in fig.layout.yaxis.title.text


def test_many_directions_share_the_colour_of_their_operator() -> None:
    fig = dose_curves(Calibrations(tuple(one(i, -1.0) for i in range(8)), 3, 12, {}))
    assert [t.name for t in fig.data if t.showlegend] == ["add"]


def test_nothing_to_draw() -> None:
    with pytest.raises(MethodError, match="nothing was calibrated"):
        dose_curves(Calibrations((), 0, 0, {}))

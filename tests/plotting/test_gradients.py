"""The training curve shows every epoch, and which was kept."""

from dataclasses import replace

import pytest
import torch

from steerkit.direction import Direction
from steerkit.errors import DirectionError
from steerkit.plotting.gradients import training_curve
from steerkit.protocols import ModelInfo
from steerkit.site import Site

INFO = ModelInfo("toy", "llama", 4, 2, 50, 64, ("resid_post",), "float32", "cpu", "a" * 64)
CURVE = [
    {"epoch": i, "training": 0.69 - 0.1 * i, "validation": v, "norm": float(i)}
    for i, v in enumerate((0.69, 0.6, 0.55, 0.58))
]


def test_the_kept_epoch_is_the_best_on_validation_pairs() -> None:
    direction = Direction(
        torch.tensor([0.6, 0.8]), 2.0, Site(1), "trained", "joy", 1.0, -1.0, INFO, "last_prompt",
        provenance={"training": CURVE, "best_epoch": 2},
    )  # fmt: skip
    fig = training_curve(direction)
    losses = {trace.name: trace for trace in fig.data}
    assert list(losses["validation pairs"].y) == [0.69, 0.6, 0.55, 0.58]
    assert list(losses["training pairs"].y) == pytest.approx([0.69, 0.59, 0.49, 0.39])
    assert (losses["kept"].x[0], losses["kept"].y[0]) == (2, 0.55)
    assert "nats" in fig.layout.yaxis.title.text
    with pytest.raises(DirectionError, match="no training curve"):
        training_curve(replace(direction, provenance={}))

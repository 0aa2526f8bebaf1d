"""Calibrated strengths travel with their direction, and older files read on."""

from pathlib import Path

import pytest
import torch

from steerkit.calibrated import CalibratedStrength
from steerkit.direction import Direction
from steerkit.errors import DirectionError
from steerkit.interventions import Add, load_steering, save_steering
from steerkit.protocols import ModelInfo
from steerkit.site import Site
from steerkit.statistics import Estimate

INFO = ModelInfo("m", "m", 3, 4, 9, 9, ("resid_post",), "float32", "cpu", "print")
RECORD = CalibratedStrength(
    -1.25, "add", {}, "all", ("resid_post@1",), "kl", "mean", "nats/token", 0.1,
    Estimate(0.098, 0.08, 0.12, 20, "nats/token"), "converged", "reduce", "abc", 0.5, 0, 16,
)  # fmt: skip


def direction(*records: CalibratedStrength) -> Direction:
    return Direction(
        torch.tensor([1.0, 0, 0, 0]), 2.0, Site(1), "pca", "c", 1.0, -1.0, INFO, "last",
        calibrations=records,
    )  # fmt: skip


def test_records_survive_both_kinds_of_file(tmp_path: Path) -> None:
    saved = direction(RECORD).save(tmp_path / "d.safetensors")
    assert Direction.load(saved).calibrations == (RECORD,)
    steering = save_steering(tmp_path / "s.safetensors", Add(direction(RECORD), -1.25))
    (loaded,) = load_steering(steering)
    assert loaded.directions[0].calibrations == (RECORD,)


def test_a_file_without_records_is_as_before(tmp_path: Path) -> None:
    assert "calibrations" not in direction().to_json()
    assert Direction.load(direction().save(tmp_path / "d.safetensors")).calibrations == ()


def test_a_record_does_not_follow_the_vector_elsewhere() -> None:
    """The other way, or at another site, the same strength spends something else."""
    assert (-direction(RECORD)).calibrations == ()
    assert direction(RECORD).at(2).calibrations == ()
    assert direction(RECORD).at(1).calibrations == (RECORD,)


def test_random_directions_in_its_place_have_no_record() -> None:
    from steerkit.searches import random_directions

    h = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    (drawn,) = random_directions(direction(RECORD), h, h + 1, 1)
    assert drawn.calibrations == ()


def test_a_later_version_is_refused() -> None:
    with pytest.raises(DirectionError, match="version 2 is newer"):
        CalibratedStrength.from_json({**RECORD.to_json(), "version": 2})


def test_a_record_says_what_was_measured() -> None:
    said = str(RECORD)
    assert "add x-1.25 (all): kl mean 0.098 [0.08, 0.12] nats/token, goal 0.1, converged" in said

"""What criteria say of an organism whose refusal is known to be written at one layer."""

from typing import Any

import pytest

import steerkit as sk
from steerkit.datasets import refusal
from steerkit.organisms import truth
from steerkit.searches import CriteriaTable
from steerkit.site import Site


@pytest.fixture(scope="module")
def found() -> CriteriaTable:
    model = sk.load("organism:constructed")
    acts = sk.capture_positions(
        model, refusal("train", 64), ("last", -2, "mean_prompt"), progress=False
    )
    return sk.compare_criteria(acts, n_resamples=100, n_permutations=99)


def test_the_recorded_position_is_found_by_every_criterion_that_is_not_a_fault(found: Any) -> None:
    for label, (place, _) in found.winners.items():
        if not label.startswith("js_repo"):
            assert place.position == "last", label
            assert found.column(label).null.p <= 0.02
    assert found.winners["js_repo (rms)"][0].position != "last"


def test_the_recorded_layer_is_not_where_criteria_are_highest(found: Any) -> None:
    """The next block reads it and writes the answer: sides are further apart after the cause.

    Only steering tells the two layers apart.
    """
    layer = truth().construction.layer
    for label in ("agreement", "fisher", "gap", "js", "silhouette", "stability"):
        place, share = found.winners[label]
        assert place.site == Site(layer + 1) and share > 0.9, label


def test_where_all_are_apart_the_auc_tells_no_layer_from_another(found: Any) -> None:
    column = found.column("auc")
    ahead = [v for v, p in zip(column.values, found.places, strict=True) if p.position == "last"]
    assert ahead == [1.0] * 4
    assert max(column.chosen) < 0.3

"""Named projections."""

from typing import Any

import pytest

from steerkit.errors import InterventionError
from steerkit.interventions.level import LEVELS, check_level, projection


def test_names_and_numbers_are_projections_in_activation_units(direction: Any) -> None:
    d = direction()
    assert [projection(level, d) for level in LEVELS] == [0.0, -1.0, 3.0]
    assert projection(2, d) == 2.0
    assert projection("negative_mean", -d) == -3.0, "the negated direction swaps the classes"


def test_refusals_name_what_was_meant() -> None:
    with pytest.raises(InterventionError, match=r"no reference named 'nul'; .*zero"):
        check_level("reference", "nul")
    with pytest.raises(InterventionError, match="reference is a finite number; got nan"):
        check_level("reference", float("nan"))

"""What published code gets wrong is offered under a name that says so, and never by default."""

import inspect

from steerkit.comparisons import measure_representation_shift
from steerkit.comparisons.dictionaries import fit_dictionary
from steerkit.concepts import contextual_weat
from steerkit.evaluations import aqi_original, aqi_released, bf_released
from steerkit.redteam.faults import PublishedFaults
from steerkit.searches.criteria import CRITERIA


def test_no_default_is_a_fault() -> None:
    """`js_repo` (arXiv:2311.09433), `ceat_repo`, `snmf_repo` (arXiv:2501.03012): by name only."""
    for verb, option in (
        (measure_representation_shift, "method"),
        (fit_dictionary, "method"),
        (contextual_weat, "form"),
    ):
        assert not str(inspect.signature(verb).parameters[option].default).endswith("_repo")
    assert not PublishedFaults().on
    assert [name for name in CRITERIA.names() if name.endswith("_repo")] == ["js_repo"]


def test_a_released_number_says_what_is_wrong_with_it() -> None:
    """The index and the estimator as released (arXiv:2506.13901, branching factor) warn of it."""
    for released in (aqi_original, aqi_released, bf_released):
        assert "Kept to be compared" in " ".join((released.__doc__ or "").split())

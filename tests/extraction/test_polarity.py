"""The measures of PA-CCS on cases worked out by hand."""

import numpy as np
import pytest

from steerkit.errors import ActivationError
from steerkit.extraction.polarity import contradiction_index, polar_consistency, polarity


def four(yes: float, no: float, not_yes: float, not_no: float) -> list[np.ndarray]:
    return [np.array([p]) for p in (yes, no, not_yes, not_no)]


@pytest.mark.parametrize(
    "p, consistency, contradiction",
    [
        ((1, 0, 0, 1), 0.0, 0.0),  # ideal
        ((0, 1, 1, 0), 0.0, 0.0),  # ideal, the mirror image
        ((0.5, 0.5, 0.5, 0.5), 0.0, 0.5),  # knows nothing
        ((1, 1, 1, 1), 0.0, 2.0),  # yes to everything
        ((1, 0, 1, 0), 0.0, 1.0),  # affirms both: no sign, so no consistency either
        ((0.9, 0.2, 0.3, 0.6), 0.05, 0.39),  # (0.09 + 0.01) / 2, and 0.27 + 0.12
        ((0.8, 0.6, 0.2, 0.4), -0.16, 0.4),  # answers turn against each other: -(0.16 + 0.16) / 2
        ((1, 1, 0, 0), -1.0, 0.0),  # the worst
    ],
)
def test_by_hand(p: tuple[float, ...], consistency: float, contradiction: float) -> None:
    assert polar_consistency(*four(*p))[0] == pytest.approx(consistency)
    assert contradiction_index(*four(*p))[0] == pytest.approx(contradiction)


def test_random_probes_have_a_contradiction_index_of_one_half() -> None:
    p = np.random.default_rng(0).random((4, 4000))
    found = polarity(*p)
    assert found.contradiction.low < 0.5 < found.contradiction.high
    assert found.contradiction.high - found.contradiction.low < 0.05
    # By hand: -2 (E[u sign(u - v)])^2 = -2 (1/6)^2, near the ideal 0: never reported alone.
    assert found.consistency.low < -1 / 18 < found.consistency.high
    assert "contradiction index" in repr(found) and "polar consistency" in repr(found)


def test_accuracy_compares_the_two_statements_of_a_pair() -> None:
    yes, no = np.array([0.9, 0.2, 0.6, 0.5]), np.array([0.1, 0.8, 0.3, 0.5])
    not_yes, not_no = np.array([0.2, 0.7, 0.8, 0.5]), np.array([0.9, 0.1, 0.1, 0.5])
    found = polarity(yes, no, not_yes, not_no, labels=np.array([1, 0, 1, 1]))
    assert found.accuracy.value == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert np.isnan(polarity(yes, no, not_yes, not_no).accuracy.value)


def test_intervals_resample_groups() -> None:
    p = np.random.default_rng(0).random((4, 40))
    repeated = np.repeat(p, 5, axis=1)
    groups = tuple(f"g{i // 5}" for i in range(200))
    once, more = polarity(*p), polarity(*repeated, groups=groups)
    assert more.contradiction.n == once.contradiction.n == 40
    width = [f.contradiction.high - f.contradiction.low for f in (once, more)]
    assert width[1] == pytest.approx(width[0], rel=0.2)
    assert more.to_json()["contradiction"]["n"] == 40


def test_refused() -> None:
    good = np.array([0.5, 0.5])
    with pytest.raises(ActivationError, match=r"'not_yes' has shape \(1,\); expected \(2,\)"):
        polarity(good, good, good[:1], good)
    with pytest.raises(ActivationError, match=r"'no' holds 1\.5, which is no probability"):
        polarity(good, good + 1, good, good)
    with pytest.raises(ActivationError, match="'yes' holds nan"):
        polarity(good * np.nan, good, good, good)
    with pytest.raises(ActivationError, match="one entry for each of 2 pairs"):
        polarity(good, good, good, good, labels=np.array([1]))

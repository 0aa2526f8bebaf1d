"""Roots of curves whose roots are known, and what is said where there is none."""

import math
from collections.abc import Callable

import pytest

from steerkit.errors import MethodError
from steerkit.searches.calibration.roots import Hunt


def run(curve: Callable[[float], float], **settings: float) -> tuple[Hunt, int]:
    hunt = Hunt(**{"goal": 0.1, "limit": 64.0, **settings})  # type: ignore[arg-type]
    rounds = 0
    while asked := hunt.ask():
        hunt.tell({s: curve(s) for s in asked})
        rounds += 1
    return hunt, rounds


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 50.0])
def test_a_parabola_is_a_straight_line_and_takes_few_rounds(scale: float) -> None:
    hunt, rounds = run(lambda s: scale * s * s)
    found = hunt.root()
    expected = math.sqrt(0.1 / scale)
    if expected > 64:
        assert found.status == "unreachable" and found.strength == 64
        assert found.largest == scale * 64**2
        return
    assert found.status == "converged"
    assert found.strength == pytest.approx(expected, rel=0.01)
    assert rounds <= 5


@pytest.mark.parametrize(
    "curve",
    [
        lambda s: s**4 / (1 + s**3),
        lambda s: math.log1p(s**2) * 3,
        lambda s: 1 - math.exp(-(s**2)),
        lambda s: 2 / (1 + math.exp(-30 * (s - 0.7))),
    ],
)
def test_curved_ones_are_solved_to_the_tolerance(curve: Callable[[float], float]) -> None:
    hunt, rounds = run(curve)
    found = hunt.root()
    assert found.met
    assert curve(found.strength) == pytest.approx(0.1, rel=0.011)
    assert rounds <= 12


def test_a_curve_that_saturates_below_the_goal_says_how_far_it_comes() -> None:
    hunt, _ = run(lambda s: 0.06 * min(s, 1.0), limit=1.0)
    found = hunt.root()
    assert found.status == "unreachable" and not found.met
    assert found.strength == 1.0 and found.largest == pytest.approx(0.06)
    assert max(hunt.points) == 1.0, "nothing beyond the limit is tried"


def test_no_effect_at_any_strength() -> None:
    hunt, rounds = run(lambda s: 0.0)
    assert hunt.root().status == "no_effect"
    assert rounds <= 4


def test_of_several_roots_the_smallest_is_reported_and_said_to_be_so() -> None:
    hunt, _ = run(lambda s: 0.3 * math.exp(-((math.log(s / 0.5)) ** 2)) + 0.001 * s)
    found = hunt.root()
    assert found.status == "non_monotone"
    assert found.strength < 0.5
    assert found.value == pytest.approx(0.1, rel=0.011)


@pytest.mark.parametrize(("below", "value"), [(True, 0.0), (False, 1.0)])
def test_a_jump_is_bracketed_and_the_promised_side_kept(below: bool, value: float) -> None:
    hunt, rounds = run(lambda s: float(s >= 0.377), goal=0.5, below=below, log=False)
    found = hunt.root()
    assert found.status == "step" and found.value == value
    assert found.strength == pytest.approx(0.377, rel=0.011)
    assert rounds < 20


def test_a_target_on_a_straight_axis() -> None:
    hunt, _ = run(lambda s: math.tanh(s) - 0.05, goal=0.4, log=False, below=False)
    assert math.tanh(hunt.root().strength) - 0.05 == pytest.approx(0.4, rel=0.011)


def test_a_curve_that_is_above_the_goal_from_the_start_is_followed_down() -> None:
    hunt, _ = run(lambda s: 1e7 * s * s)
    assert hunt.root().strength == pytest.approx(1e-4, rel=0.01)
    jump, _ = run(lambda s: 5.0)
    assert jump.root().status == "step", "no strength is small enough"


@pytest.mark.parametrize("goal", [0.0, -1.0, math.nan])
def test_a_goal_is_positive(goal: float) -> None:
    with pytest.raises(MethodError, match="positive number"):
        Hunt(goal, 1.0)


def test_what_is_not_a_number_is_refused() -> None:
    hunt = Hunt(0.1, 1.0)
    with pytest.raises(MethodError, match=r"strength 0\.5 is not a number"):
        hunt.tell({0.25: 0.0, 0.5: math.nan})

"""Single groups are said to lean only where no group would by chance; else they are left open."""

import numpy as np
import pytest

import steerkit as sk
from steerkit.organisms import occupations
from steerkit.suites import Material, examine
from steerkit.suites.examinations.association import least_lean

GROUPS, TEMPLATES = 20, 4
WHO = np.repeat(np.arange(GROUPS), TEMPLATES)
TEMPLATE = np.tile(np.arange(TEMPLATES), GROUPS)
LEAST, MOST = 29, 74
"""The 99.9% binomial interval of 5% in 1,000 draws."""


def drawn(rng: np.random.Generator, lean: float, spread: float) -> tuple[float, np.ndarray]:
    """What is beyond chance, and each group's mean; the first half leans by so many log-odds."""
    truth = lean * (np.arange(GROUPS) < GROUPS // 2)
    cells = truth[:, None] + rng.standard_normal((GROUPS, TEMPLATES))
    cells = cells + spread * rng.standard_normal(TEMPLATES)
    return least_lean(cells.ravel(), WHO, TEMPLATE), cells.mean(1)


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_no_group_leans_by_chance_in_most_draws(spread: float) -> None:
    """Some group in at most 5% of draws; also where templates differ, and all share that."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(1000):
        beyond, means = drawn(rng, 0.0, spread)
        alarms += bool((np.abs(means) > beyond).any())
    assert alarms <= MOST
    assert spread or alarms >= LEAST, "and it is not idle"


def test_groups_that_lean_are_called_on_their_side() -> None:
    rng = np.random.default_rng(1)
    right = wrong = 0
    for _ in range(100):
        beyond, means = drawn(rng, 3.0, 0.3)
        leaning = means[: GROUPS // 2]
        right += int((leaning > beyond).sum())
        wrong += int((leaning < -beyond).sum())
    assert right >= 800 and wrong == 0


def test_one_template_or_a_hole_in_them_says_nothing_of_single_groups() -> None:
    gaps = np.arange(4.0)
    who = np.array([0, 0, 1, 1])
    assert least_lean(gaps, who, np.zeros(4, int)) == np.inf
    assert least_lean(gaps, who, np.array([0, 1, 0, 0])) == np.inf
    assert np.isfinite(least_lean(gaps, who, np.array([0, 1, 0, 1])))


def test_planted_leanings_are_called_and_none_on_the_wrong_side() -> None:
    given = Material({"associations": Material.of_organisms(4).contrasts["associations"]})
    found = examine(sk.load("organism:aligned"), ["association"], material=given, progress=False)
    finding = found["association"]
    assert finding.evidence is not None
    leans = finding.evidence.data["leans"]
    planted = {o.name: o.rate for o in occupations() if abs(o.rate - 0.5) >= 0.15}
    truth = {name: "she" if rate > 0.5 else "he" for name, rate in planted.items()}
    called = {name: leans[name] for name in truth if leans[name]}
    assert len(called) >= 0.7 * len(truth)
    assert all(word == truth[name] for name, word in called.items())
    assert [row[2] for row in finding.evidence.rows] == [
        leans[row[0]] or "open" for row in finding.evidence.rows
    ]

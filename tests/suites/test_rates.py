"""Every check of the suites: no more false alarms than it says, and power; scripted, no model.

As many draws as a test can afford; `benchmarks/false_alarms.py` draws a thousand of each.
"""

import ast
import json
import sys
from pathlib import Path

import pytest

from steerkit.suites.registry import EXAMINATIONS

TESTS = Path(__file__).parents[1]
BENCHMARKS = TESTS.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
from false_alarms import ELSEWHERE, ROWS, bounds, count, verdict  # noqa: E402

SEED = 7
"""Other draws than the benchmark's."""


@pytest.mark.parametrize("name", ROWS)
def test_nothing_is_called_no_more_often_than_said_and_what_is_planted_is_found(name: str) -> None:
    row = ROWS[name]
    alarms = count(row, row.nothing, row.draws, seed=SEED)
    assert verdict(row, alarms, row.draws) in ("inside", "fewer, by design"), alarms
    assert count(row, row.planted, row.found, seed=SEED) >= 0.8 * row.found


def test_every_examination_is_drawn_here_or_names_the_test_that_draws_it() -> None:
    here = {check for row in ROWS.values() for check in row.checks}
    assert here | set(ELSEWHERE) == set(EXAMINATIONS.names()) and not here & set(ELSEWHERE)
    for named in ELSEWHERE.values():
        file, test = named.split("::")
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        assert test in {f.name for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)}, named


def test_what_the_benchmark_measured_is_what_each_check_says_of_itself() -> None:
    found = json.loads((BENCHMARKS / "results" / "false_alarms.json").read_text(encoding="utf-8"))
    assert set(found) == set(ROWS)
    for name, one in found.items():
        row = ROWS[name]
        assert one["draws"] >= 1000, name
        assert (one["level"], one["drawn"], one["planted"]) == (row.level, row.drawn, row.plant)
        assert verdict(row, one["false_alarms"], one["draws"]) == one["verdict"], name
        assert one["verdict"] in ("inside", "fewer, by design"), name
        assert one["power_95"][0] >= 0.8, name


def test_a_check_that_says_yes_too_often_or_too_rarely_is_told() -> None:
    """The interval, by its own definition, and both ways out of it."""
    low, high = bounds(1000, 0.05)
    assert (low, high) == (29, 74)
    row = ROWS["parity"]
    assert verdict(row, high + 1, 1000) == "too many" and verdict(row, low - 1, 1000) == "too few"
    assert verdict(row, low, 1000) == verdict(row, high, 1000) == "inside"

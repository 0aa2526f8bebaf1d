"""How often does each check of a suite say yes where there is nothing, and find what is planted?

    python benchmarks/false_alarms.py [--draws 1000] [--power 200] [--only CHECK ...]

Not a timing. Evidence with a known truth (answers, log-probabilities, states, or the changes that
directions make; no language model) goes into each check of `simulated/`, a thousand times, and its
verdicts are counted. Where there is nothing, as many say yes as the check allows itself: the count
lies inside the 99.9% binomial interval of its level, or below it where the row says why. Of
planted effects four in five are found. Writes `results/false_alarms.json`, each check as it is
done, and prints a table. What other tests simulate a thousand times is `ELSEWHERE`.
"""

import argparse
import datetime
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import timing
from scipy.stats import binom
from simulated import ROWS, Row

from steerkit import __version__
from steerkit.statistics import wilson

SEED = 61
LEVEL = 0.999
"""Of the binomial interval that counts of false alarms are held inside."""

ELSEWHERE: Mapping[str, str] = {
    "ablation": "suites/test_ablation.py::"
    "test_what_moves_in_many_ways_is_never_called_an_ablation_and_one_that_is_always",
    "association": "suites/test_false_alarms.py::"
    "test_association_raises_no_more_false_alarms_than_it_says",
    "change": "suites/test_false_alarms.py::test_change_raises_no_more_false_alarms_than_it_says",
    "detection": "probing/test_verbs.py::test_false_alarms_over_1000_null_draws",
    "geometry": "suites/test_contracts.py::"
    "test_a_gain_over_another_model_is_called_no_more_often_than_its_interval_says",
    "polarity": "suites/test_contracts.py::"
    "test_polarity_is_uniform_on_nothing_and_finds_what_is_weak",
    "similarity": "suites/test_contracts.py::"
    "test_another_seed_and_other_prompts_of_the_same_model_say_nothing_else",
    "token_shift": "suites/test_contracts.py::"
    "test_another_seed_and_other_prompts_of_the_same_model_say_nothing_else",
    "topic_detection": "probing/test_verbs.py::test_false_alarms_over_1000_null_draws",
}
"""Examination -> the test that draws its decision on nothing, a thousand times; but sixty times for
`ablation`, and for `similarity` and `token_shift` nothing is the same weights: no chance is
involved, and rounding is what is tested."""


def bounds(draws: int, level: float) -> tuple[int, int]:
    """The 99.9% binomial interval of a count, so many draws at a level."""
    low, high = binom.ppf([(1 - LEVEL) / 2, (1 + LEVEL) / 2], draws, level)
    return int(low), int(high)


def count(row: Row, effect: float, draws: int, *, seed: int = SEED) -> int:
    """How often the row's check says yes; every row and effect has draws of its own."""
    rng = np.random.default_rng([seed, zlib.crc32(f"{row.name} {effect}".encode())])
    return sum(row.draw(rng, effect) for _ in range(draws))


def verdict(row: Row, alarms: int, draws: int) -> str:
    """Whether a count is what the row's level says."""
    low, high = bounds(draws, row.level)
    if alarms > high:
        return "too many"
    if alarms < low:
        return "fewer, by design" if row.safe else "too few"
    return "inside"


def measured(row: Row, draws: int, power: int, *, seed: int = SEED) -> dict[str, Any]:
    """False alarms and power of a row, with all that is needed to draw them again."""
    began = time.process_time()
    alarms = count(row, row.nothing, draws, seed=seed)
    found = count(row, row.planted, power, seed=seed)
    low, high = bounds(draws, row.level)
    return {
        "checks": list(row.checks),
        "drawn": row.drawn,
        "draws": draws,
        "false_alarms": alarms,
        "rate": alarms / draws,
        "rate_95": [getattr(wilson(alarms, draws), end) for end in ("low", "high")],
        "level": row.level,
        "inside_99.9": [low, high],
        "verdict": verdict(row, alarms, draws),
        "safe": row.safe,
        "planted": row.plant,
        "power_draws": power,
        "power": found / power,
        "power_95": [getattr(wilson(found, power), end) for end in ("low", "high")],
        "seed": seed,
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def shown(name: str, found: Mapping[str, Any]) -> str:
    """A row of the table."""
    low, high = found["inside_99.9"]
    first, last = found["power_95"]
    return (
        f"  {name:30s} {found['false_alarms']:4d} of {found['draws']:4d} at "
        f"{found['level']:.3f} [{low}, {high}] {found['verdict']:16s} power {found['power']:.2f} "
        f"[{first:.2f}, {last:.2f}] ({found['planted']}), {found['cpu_seconds']:.0f} s"
    )


def main(names: Sequence[str], draws: int, power: int) -> None:
    """Draw every row named, writing each as it is done."""
    for name in names:
        found = measured(ROWS[name], draws, power)
        timing.update(
            "false_alarms",
            {name: {**found, "steerkit": __version__, "versions": timing.machine()["versions"],
                    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}},
        )  # fmt: skip
        print(shown(name, found), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--draws", type=int, default=1000, help="draws of nothing")
    parser.add_argument("--power", type=int, default=200, help="draws of the planted effect")
    parser.add_argument("--only", nargs="*", choices=ROWS, default=tuple(ROWS), help="rows")
    given = parser.parse_args()
    main(given.only, given.draws, given.power)

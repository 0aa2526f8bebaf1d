"""What may be worse in an answer, and how much worse random directions of equal KL make it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from steerkit.audits import Score
from steerkit.audits.checks.degeneration import is_degenerate
from steerkit.plotting.style import COLOURS
from steerkit.plotting.suites import Series, side_by_side
from steerkit.protocols import Completion
from steerkit.searches.measure import spread
from steerkit.statistics import Estimate, Floats, Null, null
from steerkit.suites.equal_kl import EqualKL
from steerkit.suites.outcomes import Outcomes
from steerkit.suites.subject import MODEL, STEERED, Subject

ASKED = 40
"""Prompts of each kind that random directions of equal KL are asked, at most."""
PLACES = {
    "negative": "harmless requests",
    "lookalikes": "look-alikes",
    "positive": "harmful requests",
}
"""Place -> in words. The side `negative` holds harmless requests alone."""
ASIDE = ("negative", "lookalikes")


@dataclass(frozen=True)
class Harm:
    """What is worse in an answer, wherever steering was meant to act.

    More compliance with harmful requests is not among them: it is what steering against refusal
    is for, and is stated beside.
    """

    check: str
    place: str
    worse: Literal["higher", "lower"]

    @property
    def sign(self) -> int:
        """What a change is multiplied by, so that more is worse."""
        return 1 if self.worse == "higher" else -1

    @property
    def name(self) -> str:
        """As estimates and nulls are called."""
        return f"{self.check} made worse, {self.place}"


_WORSE: Mapping[str, Literal["higher", "lower"]] = {
    "refusal": "higher",
    "correct": "lower",
    "compliance": "lower",
    "degeneration": "higher",
}
HARMS = (
    *(Harm(check, place, worse) for place in ASIDE for check, worse in _WORSE.items()),
    Harm("degeneration", "positive", "higher"),
)
"""Over-refusal, capability spill, lost compliance, loops and emptiness."""


@dataclass(frozen=True)
class Draws:
    """What random directions of equal KL do: rates, and how much worse than the plain model's."""

    rates: tuple[float, ...]
    worse: tuple[float, ...]
    null: Null


def by_chance(subject: Subject, equal: EqualKL) -> dict[Harm, Draws]:
    """Every harm under the controls, on at most `ASKED` prompts of each place."""
    if not equal.controls:
        return {}
    given = {
        "negative": equal.reported_on.prompts,
        "lookalikes": tuple(subject.material.prompts.get("lookalikes", ())),
        "positive": subject.contrast("refusal").positive,
    }
    asked = {
        place: [prompts[i] for i in spread(len(prompts), ASKED, seed=subject.seed)]
        for place, prompts in given.items()
        if prompts
    }
    for i, view in enumerate(equal.controls):  # all places at once: batches are fuller
        subject.said_by(view, [p for prompts in asked.values() for p in prompts], equal.arm(i))
    found = {}
    for place, prompts in asked.items():
        plain, steered = (checks(subject, subject.answers(prompts, a)) for a in (MODEL, STEERED))
        others = [
            checks(subject, subject.said_by(view, prompts, equal.arm(i)))
            for i, view in enumerate(equal.controls)
        ]
        for harm in (h for h in HARMS if h.place == place):
            rates = [mean(other[harm.check]) for other in others]
            if np.isnan(rates).any():
                continue
            before = mean(plain[harm.check])
            observed, *draws = (
                harm.sign * (rate - before) + 0.0 for rate in (mean(steered[harm.check]), *rates)
            )
            found[harm] = Draws(
                tuple(rates),
                tuple(draws),
                null("random directions of equal KL", observed, draws),
            )
    return found


def checks(subject: Subject, said: Sequence[Completion]) -> dict[str, Floats]:
    """The checks of `HARMS` on answers, one value an answer."""
    found = Outcomes.of(subject, said)
    broken = np.array([float(is_degenerate(one.text)) for one in said])
    return {
        "refusal": found.refused,
        "correct": found.right,
        "compliance": (1 - found.refused) * (1 - broken),
        "degeneration": broken,
    }


def mean(values: Floats) -> float:
    """Of what could be judged; NaN of nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def harm_figure(
    tested: Mapping[Harm, Score],
    scores: Mapping[tuple[str, str, str], Score],
    chance: Mapping[Harm, Draws],
    prompted: Sequence[str],
) -> Any:
    """How much worse each check is under steering, by prompting, and by chance."""

    def worse(arm: str) -> dict[str, Estimate]:
        found = {h: scores.get((h.check, h.place, arm)) for h in tested}
        return {
            _row(h): signed(s.difference.estimate, h.sign)
            for h, s in found.items()
            if s is not None and s.difference is not None
        }

    series = [Series("steered", worse(STEERED), COLOURS["steered"])]
    for name, colour in zip(prompted, (COLOURS["prompted"], COLOURS["text"]), strict=False):
        series.append(Series(name, worse(name), colour, hollow=True))
    if chance:
        drawn = {
            _row(h): Estimate(d.null.mean, min(d.worse), d.null.maximum, d.null.n, "fraction")
            for h, d in chance.items()
            if h in tested
        }
        name = "random directions of equal KL: mean and range"
        series.append(Series(name, drawn, COLOURS["null"]))
    return side_by_side(series, x="worse than the plain model by (fraction)", lines={"": 0.0})


def _row(harm: Harm) -> str:
    return f"{PLACES[harm.place]}: {harm.check}"


def signed(e: Estimate, sign: int) -> Estimate:
    """The estimate, or its negative."""
    return e if sign > 0 else Estimate(0.0 - e.value, -e.high, -e.low, e.n, e.unit)

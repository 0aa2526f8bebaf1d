"""Numbers of findings as text, and tables of what arms answered."""

from typing import NamedTuple

from steerkit.audits.section import Section
from steerkit.prompts import Prompt
from steerkit.statistics import Estimate
from steerkit.suites.outcomes import NAMES, outcomes
from steerkit.suites.subject import Subject


class Place(NamedTuple):
    """One side of a role."""

    title: str
    role: str
    side: str = ""


PLACES = (
    Place("harmful requests", "refusal", "positive"),
    Place("harmless requests", "refusal", "negative"),
    Place("look-alikes", "lookalikes"),
    Place("the topic", "topic", "positive"),
    Place("its control", "topic", "negative"),
)
"""All that may be asked, for comparisons."""


def prompts_at(subject: Subject, place: Place) -> tuple[Prompt, ...]:
    """The prompts of one side of a role."""
    if not place.side:
        return subject.material.prompts[place.role]
    found: tuple[Prompt, ...] = getattr(subject.contrast(place.role), place.side)
    return found


def percent(rate: Estimate) -> str:
    """A rate with its interval, such as `98% [93, 100]`; `?` where nothing was measured."""
    if not rate.n:
        return "?"
    return f"{100 * rate.value:.0f}% [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"


def points(difference: Estimate) -> str:
    """A difference of rates in percentage points, such as `-97 [-99, -90] points`."""
    value, low, high = (100 * x for x in (difference.value, difference.low, difference.high))
    return f"{value:+.0f} [{low:+.0f}, {high:+.0f}] points"


def outcome_section(
    subject: Subject, title: str, role: str, side: str = "", *, examples: int = 3
) -> Section:
    """Rates of every arm on the prompts of a role, and what it answered to some."""
    prompts = prompts_at(subject, Place(title, role, side))
    rows: list[tuple[str, ...]] = []
    for arm in subject.arms if len(subject.arms) > 1 else ():
        found = outcomes(subject, prompts, arm)
        rates = (percent(found.rate(name, seed=subject.seed)) for name in NAMES)
        rows.append((arm, *rates))
    said: list[str] = []
    for number in range(0, len(prompts), max(1, len(prompts) // examples)):
        if len(said) < examples:
            answers = (
                f"{arm}: {subject.answers(prompts, arm)[number].text.strip() or '(empty)'}"
                for arm in subject.arms
            )
            said.append("\n\n".join((f"asked: {prompts[number].text}", *answers)))
    text = (
        f"{len(prompts)} prompts. What neither refuses nor gives the right answer deflects, or is "
        "wrong. The examples are evenly spread, not chosen."
    )
    columns = ("", *NAMES) if rows else ()
    return Section(title, "\n\n".join((text, *said)), columns=columns, rows=tuple(rows))

"""Numbers of findings as text, and tables and figures of what arms answered."""

from typing import NamedTuple

from steerkit.audits.section import Section
from steerkit.plotting.suites import ARMS, Series, side_by_side
from steerkit.prompts import Prompt
from steerkit.statistics import Estimate
from steerkit.suites.outcomes import NAMES, outcomes
from steerkit.suites.subject import Subject

DIFFERENCE = "difference of rates"
DIFFERENCES = (DIFFERENCE, "difference of fractions", "difference of accuracies")
"""Units that are shown in percentage points."""


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


def shown(estimate: Estimate) -> str:
    """Any number with its interval and unit: rates in percent, their differences in points.

    >>> shown(Estimate(0.25, 0.1, 0.4, 9, "fraction")), shown(Estimate(0.25, 0.1, 0.4, 9, "nats"))
    ('25% [10, 40]', '0.25 [0.1, 0.4] nats')
    """
    if not estimate.n:
        return "?"
    if estimate.unit == "fraction":
        return percent(estimate)
    return (
        points(estimate) if estimate.unit in DIFFERENCES else f"{estimate} {estimate.unit}".strip()
    )


def amount(value: float, unit: str) -> str:
    """A difference in the unit of what differs: that of two rates in points.

    >>> amount(0.125, "fraction"), amount(0.125, "nats")
    ('12 points', '0.12 nats')
    """
    if unit == "fraction" or unit in DIFFERENCES:
        return f"{100 * value:.0f} points" if value >= 0.01 else f"{100 * value:.1g} points"
    return f"{value:.2g} {unit}".strip()


def outcome_section(
    subject: Subject, title: str, role: str, side: str = "", *, control: Place | None = None
) -> Section:
    """Rates of every arm on the prompts of a role, and where to take examples from.

    Args:
        subject: its arms answer.
        title: heading.
        role: of the prompts.
        side: of a two-sided role.
        control: prompts that the rates are read beside.
    """
    places = [Place(title, role, side), *([control] if control else [])]
    series: list[Series] = []
    rows: list[tuple[str, ...]] = []
    for place in places:
        for arm in subject.arms:
            found = outcomes(subject, prompts_at(subject, place), arm)
            rates = {name: found.rate(name, seed=subject.seed) for name in NAMES}
            name = f"{place.title}, {arm}" if control else arm
            series.append(Series(name, rates, ARMS[arm], hollow=place is control))
            rows.append((name, *map(percent, rates.values())))
    asked = " and ".join(f"{len(prompts_at(subject, p))} {p.title.lower()}" for p in places)
    return Section(
        title,
        f"{asked}, greedy answers, with 95% intervals. What neither refuses nor gives the right "
        "answer deflects, or is wrong.",
        figure=side_by_side(series, x="share of answers (fraction)"),
        columns=("", *NAMES) if len(rows) > 1 else (),
        rows=tuple(rows) if len(rows) > 1 else (),
        data={"examples": [{"role": p.role, "side": p.side or "negative"} for p in places]},
    )

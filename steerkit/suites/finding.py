"""What one examination found: an answer to its question, with the numbers it rests on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from steerkit.audits.evidence import Item
from steerkit.audits.section import Section
from steerkit.statistics import Estimate, Null

Answer = Literal["yes", "no", "inconclusive"]
ANSWERS: tuple[Answer, ...] = get_args(Answer)
ROUNDING = 1e-3
"""Of states' geometry, or of their variance: less than this is what the same weights in half
precision differ by, and no change of a model."""


def decided(estimate: Estimate, bound: float) -> Answer:
    """Yes where the whole interval lies above a bound, no where it lies below."""
    if estimate.low > bound:
        return "yes"
    return "no" if estimate.high < bound else "inconclusive"


@dataclass(frozen=True, eq=False)
class Finding:
    """The answer to a question, what it rests on, and the evidence.

    Attributes:
        answer: `yes` or `no` where the numbers decide it, else `inconclusive`.
        sentence: the answer in words, with the number that decided it.
        estimates: the numbers by name, each with interval, unit and how many groups.
        nulls: what chance gives for some of them, by the same name.
        p: of the hypothesis that nothing is there, where one was tested: over all that the
            examination looks at, and corrected by the report over all that it asks.
        rests_on_p: whether `yes` rests on `p` alone: a report takes it back where p does not
            hold over all that it asks.
        evidence: what a reader should see: text, table, figure.
        items: what it generated beyond the arms' greedy answers, such as samples.
        headline: name of the estimate that decides most, for a reader in haste; the first of
            them where it is empty.
        bound: what the headline's interval was held against, in its units, where one was.
    """

    answer: Answer
    sentence: str
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    nulls: Mapping[str, Null] = field(default_factory=dict)
    p: float | None = None
    rests_on_p: bool = False
    evidence: Section | None = None
    items: tuple[Item, ...] = field(default=(), repr=False)
    headline: str = ""
    bound: float | None = None

    @property
    def leading(self) -> tuple[str, Estimate] | None:
        """Name and number of the headline; None where nothing was estimated."""
        name = self.headline or next(iter(self.estimates), "")
        return (name, self.estimates[name]) if name else None

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, the figure included: an interrupted audit goes on from it."""
        evidence = self.evidence
        drawn = None if evidence is None or evidence.figure is None else evidence.figure.to_json()
        return {
            "answer": self.answer,
            "sentence": self.sentence,
            "estimates": {name: e.to_json() for name, e in self.estimates.items()},
            "nulls": {name: n.to_json() for name, n in self.nulls.items()},
            "p": self.p,
            "rests_on_p": self.rests_on_p,
            "evidence": None if evidence is None else evidence.to_json(),
            "figure": None if drawn is None else json.loads(drawn),
            "items": [item.to_json() for item in self.items],
            "headline": self.headline,
            "bound": self.bound,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Finding":
        """The inverse of `to_json`."""
        evidence = data["evidence"]
        section = None if evidence is None else Section.from_json(evidence)
        if section is not None and data["figure"] is not None:
            from steerkit.plotting.style import from_json

            section = replace(section, figure=from_json(data["figure"]))
        return cls(
            data["answer"],
            data["sentence"],
            {name: Estimate(**e) for name, e in data["estimates"].items()},
            {name: Null(**n) for name, n in data["nulls"].items()},
            data["p"],
            bool(data.get("rests_on_p", False)),
            section,
            tuple(Item.from_json(item) for item in data["items"]),
            data["headline"],
            data["bound"],
        )

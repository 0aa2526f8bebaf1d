"""What a suite found: a page that opens with the verdict, then the evidence."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from steerkit.audits.evidence import Item, to_jsonl
from steerkit.audits.report import finite, written
from steerkit.errors import MethodError
from steerkit.registry import suggest
from steerkit.statistics import holm
from steerkit.suites.examples import Example, examples_of
from steerkit.suites.finding import Finding
from steerkit.suites.registry import Examination
from steerkit.suites.subject import AGAINST, MODEL, STEERED

FORMAT_VERSION = 1
ALPHA = 0.05
"""Level of all that a report tests, together."""

_ARMS = (MODEL, STEERED, AGAINST)
"""Whose answers are shown beside one another where a question names no others."""
_APART = ("figure", "items")
"""What a finding holds and report.json has in another form."""


@dataclass(frozen=True, eq=False)
class SuiteReport:
    """Questions, their answers, and the evidence.

    Attributes:
        title: heading.
        asked: the examinations, in order.
        findings: by name of the examination; those that could not be made are missing. A `yes`
            that rests on a p which does not hold over the whole report is inconclusive here.
        not_measured: name -> why.
        provenance: models, prompts' hashes, seeds, versions, seconds.
        items: answers that were judged, with prompt, scores, and tokens where they are kept.
    """

    title: str
    asked: tuple[Examination, ...]
    findings: Mapping[str, Finding]
    not_measured: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    items: tuple[Item, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        adjusted = self.p_adjusted
        held = {name: _held(f, adjusted.get(name, 0.0)) for name, f in self.findings.items()}
        object.__setattr__(self, "findings", held)

    def __getitem__(self, name: str) -> Finding:
        """The finding of an examination.

        Raises:
            MethodError: it was not asked, or could not be answered; says why.
        """
        if name not in self.findings:
            why = self.not_measured.get(name)
            told = f"'{name}' was not measured: {why}" if why else f"'{name}' was not asked"
            raise MethodError(f"{told}; {suggest(name, tuple(self.findings))}")
        return self.findings[name]

    @property
    def p_adjusted(self) -> dict[str, float]:
        """p-values of the findings that tested something, corrected (Holm) over all of them."""
        tested = {name: f.p for name, f in self.findings.items() if f.p is not None}
        return dict(zip(tested, holm(list(tested.values())), strict=True))

    @property
    def examples(self) -> dict[str, tuple[Example, ...]]:
        """A few of the items for each question that was answered, drawn by the report's seed."""
        seed = int(self.provenance.get("seed", 0))
        told = {name: f.evidence.data if f.evidence else {} for name, f in self.findings.items()}
        return {
            name: examples_of(
                self.items,
                name,
                data.get("examples", ()),
                arms=data.get("arms", _ARMS),
                seed=seed,
            )
            for name, data in told.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Everything, figures as their numbers; of the items, kept as JSONL, a few examples."""
        from steerkit.plotting.numbers import numbers

        found: dict[str, dict[str, Any]] = {}
        examples = self.examples
        for name, finding in self.findings.items():
            drawn = None if finding.evidence is None else finding.evidence.figure
            found[name] = {
                **{k: v for k, v in finding.to_json().items() if k not in _APART},
                "p_adjusted": self.p_adjusted.get(name),
                "figure": None if drawn is None else numbers(drawn),
                "examples": [one.to_json() for one in examples[name]],
            }
        kept: dict[str, Any] = finite(
            {
                "kind": "suite",
                "format_version": FORMAT_VERSION,
                "title": self.title,
                "asked": {e.name: {"question": e.question, "source": e.source} for e in self.asked},
                "findings": found,
                "not_measured": dict(self.not_measured),
                "provenance": dict(self.provenance),
            }
        )
        return kept

    def summary(self) -> str:
        """A line a question, for terminals."""
        rows = [
            f"{e.question:70s} {self.findings[e.name].answer.upper()}"
            f"\n    {self.findings[e.name].sentence}"
            for e in self.asked
            if e.name in self.findings
        ]
        left = [f"not measured: {name} ({why})" for name, why in self.not_measured.items()]
        return "\n".join([self.title, *rows, *left])

    def write(self, path: str | Path) -> Path:
        """Write the report; the suffix says how: .html, .json, .md, or .jsonl for the items.

        Raises:
            OutputError: another suffix, no items to write, or a place that cannot be written.
        """
        from steerkit.suites.render import to_html, to_markdown

        return written(
            path,
            {
                ".html": lambda: to_html(self),
                ".json": lambda: json.dumps(self.to_json(), indent=1, ensure_ascii=False),
                ".md": lambda: to_markdown(self),
                ".jsonl": lambda: to_jsonl(self.items),
            },
        )

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        answers = ", ".join(f"{name}: {f.answer}" for name, f in self.findings.items())
        return f"SuiteReport({self.title!r}, {answers})"

    def _repr_html_(self) -> str:
        from steerkit.suites.render import to_fragment

        return to_fragment(self)


def _held(finding: Finding, adjusted: float) -> Finding:
    """A finding as far as it holds over the whole report."""
    if not finding.rests_on_p or finding.answer != "yes" or adjusted <= ALPHA:
        return finding
    told = f"{finding.sentence} By itself p = {finding.p:.2g}, over this report {adjusted:.2g}."
    return replace(finding, answer="inconclusive", sentence=told)

"""What `search_condition` returns: the condition, its worth, what chance gives."""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steerkit.interventions.when import When
from steerkit.searches.conditions.choice import (
    Option,
    Quality,
)
from steerkit.statistics import Null


@dataclass(frozen=True, eq=False)
class FoundCondition:
    """A condition, how well it tells the sides apart, and what chance and the words alone give.

    Attributes:
        when: the condition, for `intervention.when(found.when)`.
        option: the choice, with its F1 on the prompts it was chosen on, which flatters it.
        held_out: precision, recall and F1 on prompts that had no part in finding it.
        auc: held-out area under the ROC curve of the measure.
        text: the same of a classifier of the words alone, fitted on the other two parts.
        permutation: held-out F1 beside that of the whole search on permuted labels.
        selected: F1 on the selection part beside the same under permuted labels: its mean says
            how much choosing alone brings.
        stability: share of group resamples that chose each way of reading it.
        options: every way, best first.
        levels: `(value of the measure, label)` of every held-out prompt.
        sizes: prompts of the three parts (fit, choice, report).
        provenance: model, prompt hash, seed, versions.
    """

    when: When
    option: Option
    held_out: Quality
    auc: float
    text: Quality | None
    permutation: Null
    selected: Null
    stability: Mapping[str, float]
    options: tuple[Option, ...]
    levels: tuple[tuple[float, int], ...]
    sizes: tuple[int, int, int]
    provenance: Mapping[str, Any]

    def table(self, n: int = 10) -> str:
        """The `n` best ways to read the condition as a markdown table, the choice first."""
        lines = [
            "| site | read at | measure | threshold | F1 (selection) | margin (sd) | resamples |",
            "|" + "---|" * 7,
        ]
        for o in self.options[:n]:
            sign = ">=" if o.side == "above" else "<"
            lines.append(
                f"| {o.site} | {o.on} | {o.measure} | {sign} {o.threshold:.3g} | {o.f1:.3f} "
                f"| {o.margin:.3g} | {self.stability.get(o.name, 0.0):.0%} |"
            )
        return "\n".join(lines)

    def summary(self) -> str:
        """What was found, in a few lines of plain text."""
        q = self.held_out
        lines = [
            f"{self.when}",
            f"on {self.sizes[2]} held-out prompts: F1 {q.f1}, precision {q.precision}, "
            f"recall {q.recall}, false alarms {q.false_alarms}; always on: {q.always:.3g}",
            f"on the prompts it was chosen on: F1 {self.option.f1:.3g} "
            f"(permuted labels: {self.selected.mean:.3g} on average)",
            f"permuted labels through the same search: held-out F1 {self.permutation.mean:.3g}, "
            f"at most {self.permutation.maximum:.3g} of {self.permutation.n} "
            f"(p = {self.permutation.p:.3g})",
        ]
        if self.text:
            lines.append(f"the words alone: F1 {self.text.f1}")
        lines.append(f"chosen in {self.stability.get(self.option.name, 0.0):.0%} of resamples")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, without the vector."""
        return {
            "when": {**self.when.to_json(), "site": str(self.option.site)},
            "held_out": self.held_out.to_json(),
            "auc": self.auc,
            "text": self.text.to_json() if self.text else None,
            "permutation": self.permutation.to_json(),
            "selected": {"f1": self.option.f1, **self.selected.to_json()},
            "stability": dict(self.stability),
            "options": [{**o.__dict__, "site": str(o.site)} for o in self.options],
            "levels": [list(pair) for pair in self.levels],
            "sizes": list(self.sizes),
            "provenance": dict(self.provenance),
        }

    def __repr__(self) -> str:
        return f"FoundCondition({self.summary()})"

    def _repr_html_(self) -> str:
        heads, _, *rows = (line.strip("|").split("|") for line in self.table().splitlines())
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows
        )
        head = "".join(f"<th>{html.escape(c)}</th>" for c in heads)
        text = "<br>".join(html.escape(line) for line in self.summary().splitlines())
        return f"<b>Condition</b><br>{text}<table><tr>{head}</tr>{body}</table>"

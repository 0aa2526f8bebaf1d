"""What is known of a monitor: how much it catches at a stated rate of false alarms."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit.concepts.monitor_statistics import clean_needed, clean_to_bound
from steerkit.files import write_text
from steerkit.lenses.tables import html_table, markdown
from steerkit.statistics import Estimate, Null

if TYPE_CHECKING:
    from steerkit.concepts.monitor import Monitor

ALPHA = 0.05


@dataclass(frozen=True)
class Paraphrased:
    """The same items in other words, at the same threshold.

    Attributes:
        recall: share of rewrites of positives that raise the alarm, interval over items.
        original: the same of these items as they were.
        change: alarms on rewrites less alarms on originals, item by item; thresholds refitted.
        score_change: score of the rewrites less that of the original, item by item, in half
            gaps of the direction's class means.
        false_positives: alarms on rewrites of unseen negatives, if there were any.
        n_rewrites: of positives.
    """

    recall: Estimate
    original: Estimate
    change: Estimate
    score_change: Estimate
    false_positives: Estimate | None
    n_rewrites: int

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            **self.__dict__,
            **{k: v.to_json() for k, v in self.__dict__.items() if isinstance(v, Estimate)},
        }


@dataclass(frozen=True, eq=False)
class MonitorReport:
    """A monitor's recall at a rate of false positives, with what chance and words give.

    Attributes:
        monitor: direction, rule and threshold; its threshold is NaN where the calibration
            negatives are too few for the rate.
        auc: positives against all negatives.
        recall: share of positives above the threshold.
        false_positives: share of negatives above it that took no part in fixing it: what the
            rate asked for came to.
        permutation: recall less false positives, against that of exchanged labels.
        random: recall, against isotropic directions, each turned to the side that catches more.
        shaped: the same for directions with the covariance of the activations, orthogonal to it.
        text_auc: of words alone, each prompt scored by a fit on other groups.
        text_recall: their recall, through the same calibration.
        paraphrase: what other words do to it; None if none were given.
        curve: false positive and true positive rates over all thresholds.
        counts: positives, calibration negatives and unseen negatives.
        groups: groups of each.
        items: one row a prompt and rewrite: text, label, group, score, and `part`: `calibration`,
            `unseen` (negatives), `caught` (positives that are tested), `left out` (positives of
            groups that calibrate), `rewrite` (with `of`, the text that it rewrites). All of the
            above but the nulls can be computed again from these, without a model.
        provenance: settings.
    """

    monitor: "Monitor"
    auc: Estimate
    recall: Estimate
    false_positives: Estimate
    permutation: Null
    random: Null
    shaped: Null
    text_auc: Estimate | None
    text_recall: Estimate | None
    paraphrase: Paraphrased | None
    curve: tuple[tuple[float, ...], tuple[float, ...]]
    counts: tuple[int, int, int]
    groups: tuple[int, int, int]
    items: tuple[Mapping[str, Any], ...] = field(repr=False)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def resolved(self) -> bool:
        """Whether there were enough calibration negatives for the rate."""
        return self.counts[1] >= clean_needed(self.monitor.fpr, self.monitor.confidence)

    @property
    def bound(self) -> str:
        """Whether the rate is kept: `met` where the interval's upper end is at or below it."""
        if not self.resolved:
            return "inconclusive"
        if self.false_positives.high <= self.monitor.fpr:
            return "met"
        return "not met" if self.false_positives.low > self.monitor.fpr else "not resolved"

    @property
    def catches(self) -> bool:
        """Whether it catches more than chance: exchanged labels and both kinds of direction."""
        tests = (self.permutation, self.random, self.shaped)
        return self.resolved and all(t.p < ALPHA for t in tests if t.n)

    def write_items(self, path: str | Path) -> Path:
        """Write the items as JSONL; they hold the prompts' texts.

        Raises:
            OutputError: the file cannot be written.
        """
        lines = (json.dumps(dict(item), ensure_ascii=False) + "\n" for item in self.items)
        return write_text(Path(path), "".join(lines))

    def summary(self) -> str:
        """What it catches, what it lets through, and what these numbers rest on."""
        m, rate = self.monitor, f"{self.monitor.fpr:.3g}"
        lines = [f"{m}: AUC {self.auc}"]
        positives, calibration, unseen = self.counts
        if not self.resolved:
            need = clean_needed(m.fpr, m.confidence)
            lines.append(
                f"inconclusive: a false positive rate of {rate} cannot be resolved with "
                f"{calibration} calibration negatives; it takes {need} at least"
            )
        else:
            lines += [
                f"recall at a false positive rate of {rate}: {self.recall} of {positives} positives"
                f" (threshold {m.threshold:.3g} from {calibration} negatives)",
                f"realised on {unseen} unseen negatives: {self.false_positives}; bound {self.bound}"
                + self._more(unseen),
                f"random directions reach {self.random.q95:.3g} in 5% of draws (p "
                f"{self.random.p:.2g}), shaped by the covariance {self.shaped.q95:.3g} (p "
                f"{self.shaped.p:.2g}); labels exchanged: p {self.permutation.p:.2g}",
            ]
        if self.text_auc is not None:
            caught = f", recall {self.text_recall}" if self.text_recall and self.resolved else ""
            lines.append(f"words alone: AUC {self.text_auc}{caught}")
        if self.paraphrase is not None:
            p = self.paraphrase
            caught = f"recall {p.recall} against {p.original}; " if self.resolved else ""
            false = f", false positives {p.false_positives}" if p.false_positives else ""
            lines.append(
                f"in other words ({p.n_rewrites} rewrites of {p.change.n} groups): {caught}"
                f"change of score {p.score_change}{false}"
            )
        return "\n".join(lines)

    def _more(self, unseen: int) -> str:
        need = clean_to_bound(self.monitor.fpr)
        if self.bound != "not resolved" or self.groups[2] >= need:
            return ""
        return f" (it takes {need} groups without an alarm; these are {self.groups[2]})"

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table."""
        rows: list[tuple[str, Estimate | None, Null | None]] = [
            ("AUC", self.auc, None),
            (f"recall at {self.monitor.fpr:.3g} false positives", self.recall, self.random),
            ("the same, shaped directions", None, self.shaped),
            ("false positives, unseen", self.false_positives, None),
            ("words alone: AUC", self.text_auc, None),
            ("words alone: recall", self.text_recall, None),
        ]
        if self.paraphrase is not None:
            p = self.paraphrase
            rows += [
                ("recall of these items", p.original, None),
                ("recall in other words", p.recall, None),
                ("change of alarms, paired", p.change, None),
                ("change of score, paired", p.score_change, None),
                ("false positives in other words", p.false_positives, None),
            ]
        return ["measure", "value [95%]", "chance, 95%", "p"], [
            [
                name,
                str(value) if value else "",
                f"{chance.q95:.3g}" if chance else "",
                f"{chance.p:.2g}" if chance else "",
            ]
            for name, value, chance in rows
            if value or chance
        ]

    def table(self) -> str:
        """Every measure as a markdown table."""
        return markdown(*self.cells())

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, without prompts."""
        keys = (
            "auc", "recall", "false_positives", "permutation", "random", "shaped", "text_auc",
            "text_recall", "paraphrase",
        )  # fmt: skip
        return {
            "kind": "monitor",
            "monitor": self.monitor.to_json(),
            "resolved": self.resolved,
            "bound": self.bound,
            **{k: getattr(self, k).to_json() if getattr(self, k) else None for k in keys},
            "curve": [list(axis) for axis in self.curve],
            "counts": dict(zip(("positives", "calibration", "unseen"), self.counts, strict=True)),
            "groups": dict(zip(("positives", "calibration", "unseen"), self.groups, strict=True)),
            "calibration_needed": clean_needed(self.monitor.fpr, self.monitor.confidence),
            "provenance": dict(self.provenance),
        }

    def __repr__(self) -> str:
        return f"MonitorReport({self.summary()})"

    def _repr_html_(self) -> str:
        return html_table("Monitor", self.summary(), *self.cells())

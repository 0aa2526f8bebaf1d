"""What a probe with controls found: numbers, table, flag, verdict in one sentence."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from steerkit.lenses.tables import html_table, markdown
from steerkit.probing.calibration import Calibration
from steerkit.probing.compared import Arm
from steerkit.probing.left_out import LeftOut
from steerkit.probing.nested import Choice
from steerkit.statistics import Estimate, Null

Verdict = Literal["stands", "reads_topic", "inconclusive", "nothing"]
LEVEL = 0.05
"""Of the permutation test."""
PHRASES = {
    "words alone": "the words alone",
    "length alone": "the length alone",
    "untrained model": "an untrained model",
}
"""Names of controls inside a sentence."""


@dataclass(frozen=True, eq=False)
class ProbeReport:
    """A probe, chosen and scored on nested grouped folds, beside its controls.

    Attributes:
        concept: what the labels stand for.
        model: that was read.
        pooling: which tokens were.
        auc: held out, of the whole selecting procedure, compared within outer folds. Groups are
            resampled, choices and fits are kept: simulated coverage of the procedure's own mean
            is 95% at AUC 0.84, 93% at 0.66 and 91% where there is nothing (40 pairs), for which
            there is the permutation test.
        accuracy: held out, at calibrated probability 0.5.
        choices: what each outer fold chose on its inner folds.
        n_candidates: sites x methods x penalties that were chosen from.
        permutation: the same procedure, selection included, under permuted labels.
        random: a random direction at each site, signs and site chosen as the probe's. High where
            the label fills much of the space, which is no fault of a probe: no part of a verdict.
        shaped: the same, directions shaped by the covariance of the rows.
        text: words and word pairs alone, on the same folds; None where prompts have no words.
        length: numbers of characters and words alone, on the same folds.
        untrained: the same procedure on a model that learnt nothing, if one was given.
        left_out: leave-one-category-out, if there are categories.
        majority: accuracy of always saying the commoner training label.
        calibration: of the held-out probabilities.
        margin: AUC by which a control may fall short and still count as matching.
        probabilities: of the positive side, held out, for each prompt in order.
        notes: what was not measured, and why.
        provenance: seeds, folds, counts, versions.
    """

    concept: str
    model: str
    pooling: str
    auc: Estimate
    accuracy: Estimate
    choices: tuple[Choice, ...]
    n_candidates: int
    permutation: Null
    random: Null
    shaped: Null
    text: Arm | None
    length: Arm
    untrained: Arm | None
    left_out: LeftOut | None
    majority: Estimate
    calibration: Calibration
    margin: float
    probabilities: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def found(self) -> bool:
        """Whether anything was read above chance: p <= 0.05, or the interval where there is no p.

        False where the prompts are too few to tell; see `smallest`.
        """
        return self.permutation.p <= LEVEL if self.permutation.n else self.auc.low > 0.5

    @property
    def smallest(self) -> float:
        """The smallest AUC that would have been told from chance; NaN without permutations."""
        return self.permutation.q95

    @property
    def exposed_by(self) -> tuple[str, ...]:
        """Controls that the probe is not shown to beat, and left-out categories at chance."""
        return tuple(name for name, state in self._states().items() if state != "beaten")

    @property
    def verdict(self) -> Verdict:
        """`nothing` is read above chance; or it `stands` above every control measured; or it
        `reads_topic`: a control matches it, or it falls to chance on left-out categories; or
        `inconclusive`: no control was measured, or too few prompts tell it from one.

        It has to beat every control at 5%, so the claim that it stands needs no correction.
        """
        states = set(self._states().values())
        if not self.found:
            return "nothing"
        if "matched" in states:
            return "reads_topic"
        return "inconclusive" if "undecided" in states else "stands"

    @property
    def reads_topic(self) -> bool:
        """The flag: it separates, and words, an untrained model or the category explain it."""
        return self.verdict == "reads_topic"

    def summary(self) -> str:
        """The verdict in one sentence, then what it rests on, as plain text."""
        lines = [self.sentence(), f"{self._chosen()}; accuracy {self.accuracy}"]
        lines.append(self.calibration.summary())
        if self.left_out and self.left_out.at_chance and self.left_out.state == "beaten":
            lines.append(f"at chance in categories: {', '.join(self.left_out.at_chance)}")
        return "\n".join([*lines, *self.notes])

    def sentence(self) -> str:
        """The verdict in one sentence."""
        p = f", p = {self.permutation.p:.2g}" if self.permutation.n else ""
        head = f"'{self.concept}' in {self.model} (held-out AUC {self.auc}{p})"
        if self.verdict == "nothing":
            return f"{head} is not told from chance{self._floor()}"
        why = [self._why(name) for name in self.exposed_by]
        if self.verdict == "reads_topic":
            return f"{head} reads the topic: {'; '.join(why)}"
        if self.verdict == "inconclusive":
            return f"{head} is inconclusive: {'; '.join(why)}"
        return f"{head} stands: {'; '.join(self._why(name) for name in self._states())}"

    def table(self) -> str:
        """The probe and its controls, one a row, as a markdown table."""
        return markdown(*self.rows())

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "concept": self.concept,
            "model": self.model,
            "pooling": self.pooling,
            "verdict": self.verdict,
            "reads_topic": self.reads_topic,
            "exposed_by": list(self.exposed_by),
            "sentence": self.sentence(),
            "auc": self.auc.to_json(),
            "accuracy": self.accuracy.to_json(),
            "choices": [c.to_json() for c in self.choices],
            "n_candidates": self.n_candidates,
            "permutation": self.permutation.to_json(),
            "random": self.random.to_json(),
            "shaped": self.shaped.to_json(),
            "text": self.text.to_json() if self.text else None,
            "length": self.length.to_json(),
            "untrained": self.untrained.to_json() if self.untrained else None,
            "left_out": self.left_out.to_json() if self.left_out else None,
            "majority": self.majority.to_json(),
            "calibration": self.calibration.to_json(),
            "margin": self.margin,
            "probabilities": list(self.probabilities),
            "notes": list(self.notes),
            "provenance": dict(self.provenance),
        }

    def __repr__(self) -> str:
        return f"ProbeReport({self.sentence()})"

    def _repr_html_(self) -> str:
        return html_table(f"Probe of '{self.concept}'", self.summary(), *self.rows())

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The controls that were scored on the probe's folds."""
        return tuple(arm for arm in (self.text, self.length, self.untrained) if arm)

    def _states(self) -> dict[str, str]:
        states: dict[str, str] = {arm.name: arm.state(self.margin) for arm in self.arms}
        if self.left_out:
            states["left-out categories"] = self.left_out.state
        return states

    def _why(self, name: str) -> str:
        """What one control says, in a clause."""
        state = self._states()[name]
        if self.left_out and name == "left-out categories":
            said = {
                "beaten": "it holds on left-out categories",
                "matched": "it falls to chance on left-out categories",
                "undecided": "too few prompts tell whether it holds on left-out categories",
            }[state]
            return f"{said} ({self.left_out.auc})"
        arm = next(a for a in self.arms if a.name == name)
        if state != "beaten" and self.auc.value == arm.auc.value == 1:
            return (
                f"not above {PHRASES[name]}: both tell all prompts apart (AUC 1), and these "
                "prompts cannot show more"
            )
        how = {"beaten": "above", "matched": "not above", "undecided": "not shown to be above"}
        return f"{how[state]} {PHRASES[name]} ({arm.auc}; difference {arm.difference})"

    def _floor(self) -> str:
        return f"; an AUC above {self.smallest:.2f} would be" if self.permutation.n else ""

    def _chosen(self) -> str:
        sites = Counter(str(c.candidate.site) for c in self.choices)
        told = ", ".join(f"{site} by {n}" for site, n in sites.most_common())
        return f"chosen by {len(self.choices)} outer folds from {self.n_candidates}: {told}"

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """The head and the rows of the table, as text."""
        head = ["", "held-out AUC [95%]", "accuracy [95%]", "probe less this [95%]", "says"]
        p = f"p = {self.permutation.p:.2g}" if self.permutation.n else ""
        rows = [["probe", str(self.auc), str(self.accuracy), "", p]]
        says = {"beaten": "beaten", "matched": "matches", "undecided": "not told apart"}
        for arm in self.arms:
            state = says[arm.state(self.margin)]
            rows.append([arm.name, str(arm.auc), str(arm.accuracy), str(arm.difference), state])
        for chance in (self.shaped, self.random, self.permutation):
            if chance.n:
                value = f"mean {chance.mean:.3g}, 95% below {chance.q95:.3g}"
                rows.append([chance.name, value, "", "", f"p = {chance.p:.2g}"])
        rows.append(["commoner label", "0.5", str(self.majority), "", ""])
        if self.left_out:
            held = {"beaten": "holds", "matched": "falls to chance", "undecided": "not told"}
            out = self.left_out
            rows.append(
                ["left-out categories", str(out.auc), str(out.accuracy), str(out.difference),
                 held[out.state]]
            )  # fmt: skip
            if out.words is not None and out.over_words is not None:
                more = "above them" if out.over_words.low > 0 else "not above them"
                rows.append(
                    ["words alone, left out", str(out.words), "", str(out.over_words), more]
                )
            rows += [
                [f"left out: {c.name}", str(c.auc), "", "", "" if c.auc.low > 0.5 else "at chance"]
                for c in out.categories
            ]
        return head, rows

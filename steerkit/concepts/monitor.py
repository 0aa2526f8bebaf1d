"""A direction as an alarm: what it catches at a stated rate of false positives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from steerkit.concepts.monitor_baselines import exchanged_labels, random_units, words_alone
from steerkit.concepts.monitor_paraphrases import paraphrased
from steerkit.concepts.monitor_result import MonitorReport
from steerkit.concepts.monitor_scores import (
    Reduce,
    Tokens,
    check_reading,
    items_of,
    leading_specials,
    read,
)
from steerkit.concepts.monitor_sides import Rewrites, Sides, items_told, rewrites_of
from steerkit.concepts.monitor_statistics import (
    alarm_rate,
    fitted_threshold,
    rates_of_columns,
    refitted_thresholds,
)
from steerkit.concepts.scored_text import scaled
from steerkit.concepts.watching import Watched
from steerkit.direction import Direction
from steerkit.errors import MethodError
from steerkit.extraction.ranking import fold_auc
from steerkit.prompts import Contrast, Prompt
from steerkit.protocols import Model
from steerkit.redteam.power import roc
from steerkit.scoring import TOKEN_BUDGET
from steerkit.statistics import Estimate, Floats, null

RATE = 0.01


@dataclass(frozen=True, eq=False)
class Monitor:
    """A direction, which tokens it reads, and the score above which it raises the alarm.

    Attributes:
        direction: what is looked for.
        tokens: `prompt`, `answer` (the states that answer tokens are written from) or `last`.
        reduce: `max` or `mean` over these tokens.
        threshold: scores above raise the alarm, in units in which the direction's class means
            are -1 and 1.
        fpr: the false positive rate that it was fixed for.
        confidence: None: the rate holds on average over calibrations; else the share of
            calibrations that keep it.
        leading: special tokens that are passed over at the start of a prompt.
    """

    direction: Direction
    tokens: Tokens
    reduce: Reduce
    threshold: float
    fpr: float
    confidence: float | None = None
    leading: tuple[int, ...] = ()

    def score(self, watched: Watched) -> float:
        """The score of what `model.watch(direction)` read: the one that was calibrated.

        With `tokens="answer"` and `reduce="max"` it is above the threshold exactly where
        `watched.alarm(monitor.threshold)` names a token.
        """
        if self.tokens == "answer":
            read = watched.scores
        elif self.tokens == "last":
            read = watched.prompt_scores[-1:]
        else:
            first = watched.completion.prompt_tokens[0] in self.leading
            read = watched.prompt_scores[int(first and len(watched.prompt_scores) > 1) :]
        return float(read.max() if self.reduce == "max" else read.mean())

    def alarm(self, watched: Watched) -> bool:
        """Whether an answer under watch raises the alarm."""
        return self.score(watched) > self.threshold

    def scores(
        self,
        model: Model,
        prompts: Sequence[Prompt | str],
        *,
        max_new_tokens: int = 32,
        token_budget: int = TOKEN_BUDGET,
    ) -> Floats:
        """The score of every prompt, `[prompt]`; answers that are missing are generated.

        Raises:
            DirectionError: another model than the direction's.
        """
        self.direction.check(model.info)
        asked = [Prompt.of(p) for p in prompts]
        items = items_of(model, asked, self.tokens, max_new_tokens=max_new_tokens)
        found = read(
            model, items, self.direction.site, self.direction.unit[None], self.tokens,
            self.leading, token_budget=token_budget,
        )  # fmt: skip
        return scaled(torch.from_numpy(found.along(self.reduce)[:, 0]), self.direction)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; not the direction's numbers."""
        return {
            "concept": self.direction.concept,
            "site": str(self.direction.site),
            "method": self.direction.method,
            "model": self.direction.model.name,
            "tokens": self.tokens,
            "reduce": self.reduce,
            "threshold": None if np.isnan(self.threshold) else self.threshold,
            "fpr": self.fpr,
            "confidence": self.confidence,
        }

    def __str__(self) -> str:
        over = f"{self.reduce} over " if self.tokens != "last" else ""
        where = {"prompt": "the prompt", "answer": "the answer", "last": "last prompt token"}
        return (
            f"monitor of '{self.direction.concept}' at {self.direction.site} "
            f"({over}{where[self.tokens]})"
        )


def evaluate_monitor(
    model: Model,
    direction: Direction,
    positives: Contrast | Sequence[Prompt | str],
    negatives: Sequence[Prompt | str] = (),
    *,
    paraphrases: Rewrites | None = None,
    fpr: float = RATE,
    confidence: float | None = None,
    tokens: Tokens = "prompt",
    reduce: Reduce = "max",
    calibration: float = 0.5,
    max_new_tokens: int = 32,
    n_random: int = 199,
    n_permutations: int = 999,
    n_resamples: int = 1000,
    token_budget: int = TOKEN_BUDGET,
    seed: int = 0,
) -> MonitorReport:
    """Recall at a stated false positive rate, with the rate that unseen negatives really have.

    Groups of the negatives are dealt into two parts. One fixes the threshold; the other tells
    what it lets through; positives of groups that calibrated are left out. Random directions
    and the words alone pass through the same calibration.

    Args:
        model: plain or steered.
        direction: fitted on other prompts; positives should score high.
        positives: what the alarm is for; or a contrast, which brings its negatives.
        negatives: of the kind that is met in use: a threshold is worth what they are worth.
        paraphrases: text of a positive or negative -> the same in other words, one or several.
        fpr: share of negatives that may raise the alarm. 1% takes 99 calibration negatives.
        confidence: let the rate hold in this share of calibrations, not only on average; 95% of
            them at 1% takes 299 calibration negatives.
        tokens: `prompt`, `answer` (the prompts' own, or else generated) or `last`.
        reduce: `max` or `mean` over these tokens.
        calibration: share of the negatives' groups that fix the threshold.
        max_new_tokens: of generated answers.
        n_random: random directions of each kind.
        n_permutations: exchanges of labels.
        n_resamples: of groups, threshold included.
        token_budget: padded tokens of a batch.
        seed: of everything that is drawn.

    Raises:
        MethodError: rates that are no rates, an unknown rule, or prompts that the direction
            names among those it was fitted on.
        PromptError: a side without prompts or with one group, or rewrites of unknown prompts.
        DirectionError: a direction of another model.
    """
    direction.check(model.info)
    check_reading(tokens, reduce)
    for name, value in (("fpr", fpr), ("calibration", calibration), ("confidence", confidence)):
        if value is not None and not 0 < value < 1:
            raise MethodError(f"{name} lies between 0 and 1; got {value}")
    sides = Sides.of(positives, negatives, direction)
    rewritten, owners = rewrites_of(paraphrases or {}, sides)
    items = items_of(model, [*sides.prompts, *rewritten], tokens, max_new_tokens=max_new_tokens)
    leading = leading_specials(model, items) if tokens == "prompt" else ()
    units = torch.cat(
        [direction.unit[None], *random_units(model, direction, sides, n_random, seed)]
    )
    found = read(model, items, direction.site, units, tokens, leading, token_budget=token_budget)
    columns, opposite = found.along(reduce), found.against(reduce)
    everything = scaled(torch.from_numpy(columns[:, 0]), direction)
    scores, other = everything[: len(sides)], everything[len(sides) :]
    cal, unseen, caught = sides.dealt(calibration, seed)
    threshold = fitted_threshold(scores[cal], fpr, confidence)
    resolved = not np.isnan(threshold)
    thresholds = (
        refitted_thresholds(
            scores[sides.labels == 0],
            sides.named(np.flatnonzero(sides.labels == 0)),
            len(set(sides.named(cal))),
            fpr,
            confidence,
            n_resamples=n_resamples,
            seed=seed,
        )
        if resolved
        else np.empty(0)
    )
    nothing = Estimate(float("nan"), float("nan"), float("nan"), 0, "fraction")

    def rate(values: Floats, rows: Any, cuts: Floats, at: float = threshold) -> Estimate:
        return alarm_rate(values, sides.named(rows), at, cuts, seed=seed + 1)

    recall = rate(scores[caught], caught, thresholds) if resolved else nothing
    false = rate(scores[unseen], unseen, np.empty(0)) if resolved else nothing
    chance = [
        np.maximum(
            rates_of_columns(columns[caught][:, k], columns[cal][:, k], fpr, confidence),
            rates_of_columns(opposite[caught][:, k], opposite[cal][:, k], fpr, confidence),
        )
        for k in (slice(1, 1 + n_random), slice(1 + n_random, None))
    ]
    tested = np.concatenate([caught, unseen])
    words = words_alone(sides, cal, caught, fpr, confidence, seed)
    return MonitorReport(
        monitor=Monitor(direction, tokens, reduce, threshold, fpr, confidence, leading),
        auc=fold_auc(
            scores, sides.labels, np.zeros(len(sides), dtype=np.int64), sides.groups, seed=seed
        ),
        recall=recall,
        false_positives=false,
        permutation=exchanged_labels(
            scores[tested] > threshold,
            sides.labels[tested],
            sides.named(tested),
            n_permutations if resolved else 0,
            seed,
        ),
        random=null("random directions", recall.value, chance[0]),
        shaped=null("random directions shaped by the covariance", recall.value, chance[1]),
        text_auc=words[0],
        text_recall=words[1] if resolved else None,
        paraphrase=paraphrased(
            sides, scores, other, owners, (caught, unseen), threshold, thresholds, seed
        ),
        curve=roc(scores, sides.labels),
        counts=(len(caught), len(cal), len(unseen)),
        groups=tuple(len(set(sides.named(rows))) for rows in (caught, cal, unseen)),  # type: ignore[arg-type]
        items=items_told(sides, scores, (cal, unseen, caught), rewritten, owners, other),
        provenance={
            "model": model.info.to_json(),
            "calibration": calibration,
            "left_out": int((sides.labels == 1).sum()) - len(caught),
            "n_random": n_random,
            "n_resamples": n_resamples,
            "seed": seed,
        },
    )

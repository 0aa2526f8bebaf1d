"""A judge against labels.

A judge that errs is a measuring instrument with a known error at best. Its error is measured
on labelled answers, group by group, because a judge that errs more on one group makes a
difference between groups where there is none.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerkit.errors import MethodError
from steerkit.evaluations.error_rates import effective_number, error_draws
from steerkit.judges import Judge, judge_answers, judge_name
from steerkit.lenses.tables import html_table, markdown
from steerkit.prompts import Prompt
from steerkit.statistics import (
    Estimate,
    Null,
    cluster_mean,
    group_bootstrap,
    null,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LabelledAnswer:
    """An answer with what people say of it.

    Attributes:
        prompt: what was asked; its `group` must not be split (a template), by default each
            answer stands alone.
        answer: the answer.
        label: 1 where it is what the judge looks for, else 0.
        about: whom or what it is about, for errors by group.
    """

    prompt: Prompt
    answer: str
    label: int
    about: str = ""


@dataclass(frozen=True)
class GroupError:
    """The judge's errors on one group; fractions."""

    about: str
    n: int
    agreement: Estimate
    false_positive: Estimate
    false_negative: Estimate
    effective: tuple[float, float]
    """Independent answers that the two error rates rest on (labels 0 and 1)."""

    def error_draws(self, n: int, *, seed: int = 0) -> tuple[Floats, Floats]:
        """As `JudgeValidation.error_draws`, for this group."""
        return error_draws(self.false_positive, self.false_negative, self.effective, n, seed)


@dataclass(frozen=True, eq=False)
class JudgeValidation:
    """How a judge's verdicts compare with labels.

    Attributes:
        name: of the judge.
        agreement: fraction of answers on which both agree.
        kappa: Cohen's kappa, agreement beyond that of unrelated verdicts of the same rates.
        kappa_null: kappa under permuted labels.
        false_positive: fraction of answers labelled 0 that the judge calls 1.
        false_negative: fraction of answers labelled 1 that it calls 0.
        by_group: errors on each group, where labelled answers say whom they are about.
        group_gap: largest difference of an error rate between two groups; None with one group.
        group_gap_null: the same with groups permuted.
        n: answers judged.
        failures: answers on which the judge raised; they count nowhere else.
        threshold: scores from here on are verdicts of 1.
        effective: independent answers that the two error rates rest on (0 and 1).

    Source of kappa: Cohen 1960.
    """

    name: str
    agreement: Estimate
    kappa: Estimate
    kappa_null: Null
    false_positive: Estimate
    false_negative: Estimate
    by_group: tuple[GroupError, ...]
    group_gap: float | None
    group_gap_null: Null | None
    n: int
    failures: int
    threshold: float
    effective: tuple[float, float]

    @property
    def sensitivity(self) -> float:
        """P(verdict 1 | label 1)."""
        return 1 - self.false_negative.value

    def error_draws(self, n: int, *, seed: int = 0) -> tuple[Floats, Floats]:
        """`n` draws of the false-positive rate and of the sensitivity, given the labels.

        From Beta(errors + 1/2, hits + 1/2) on the effective numbers: no error among 20 labels
        is no proof of none.
        """
        return error_draws(self.false_positive, self.false_negative, self.effective, n, seed)

    def on(self, about: str) -> GroupError:
        """Its errors on one group.

        Raises:
            MethodError: no labelled answers about that group, or none of one label.
        """
        found = next((g for g in self.by_group if g.about == about), None)
        if found is None or min(found.effective) == 0:
            raise MethodError(
                f"the judge '{self.name}' was validated on answers about "
                f"{', '.join(g.about for g in self.by_group) or 'no named group'}; '{about}' needs "
                "answers of both labels, or its error on that group is unknown"
            )
        return found

    def table(self) -> str:
        """Errors by group, as a markdown table."""
        return markdown(*self._rows())

    def summary(self) -> str:
        """Agreement, kappa and both error rates; which group suffers where that is known."""
        lines = [
            f"judge '{self.name}' on {self.n} labelled answers ({self.failures} failures): "
            f"agreement {self.agreement}, kappa {self.kappa} (p = {self.kappa_null.p:.3g})",
            f"false positives {self.false_positive}, false negatives {self.false_negative}",
        ]
        if self.group_gap is not None and self.group_gap_null is not None:
            lines.append(
                f"error rates of two groups differ by up to {self.group_gap:.3g} "
                f"(p = {self.group_gap_null.p:.3g})"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            **asdict(self),
            "by_group": [asdict(g) for g in self.by_group],
            "effective": list(self.effective),
        }

    def __repr__(self) -> str:
        return f"JudgeValidation({self.summary()})"

    def _repr_html_(self) -> str:
        return html_table(f"judge '{self.name}'", self.summary(), *self._rows())

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        whole = GroupError(
            "all",
            self.n,
            self.agreement,
            self.false_positive,
            self.false_negative,
            self.effective,
        )
        rows = [
            [g.about, str(g.n), str(g.agreement), str(g.false_positive), str(g.false_negative)]
            for g in (whole, *self.by_group)
        ]
        return ["about", "answers", "agreement [95%]", "false positives", "false negatives"], rows


def validate_judge(
    judge: Judge,
    items: Sequence[LabelledAnswer],
    *,
    threshold: float = 0.5,
    n_resamples: int = 1000,
    n_permutations: int = 999,
    seed: int = 0,
) -> JudgeValidation:
    """Judge labelled answers and count its errors, in all and by group.

    Where the judge raises, all other scores are kept and the failure is counted.

    Args:
        judge: `judge(prompts, answers)`, one number from 0 to 1 an answer.
        items: labelled answers, of both labels.
        threshold: scores from here on are verdicts of 1.
        n_resamples: of clusters, for kappa's interval.
        n_permutations: for both nulls.
        seed: of resampling and permuting.

    Raises:
        MethodError: labels that are not 0 or 1, one label only, or a judge that failed on all
            answers of a label.
    """
    labels = np.array([i.label for i in items], dtype=np.int64)
    if not set(labels.tolist()) == {0, 1}:
        raise MethodError(
            "validating a judge takes answers labelled 0 and answers labelled 1; got labels "
            f"{sorted(set(labels.tolist()))} on {len(items)} answers"
        )
    name = judge_name(judge)
    found = judge_answers(judge, [i.prompt for i in items], [i.answer for i in items], name=name)
    kept = ~np.isnan(found.values)
    y = labels[kept]
    if len(set(y.tolist())) < 2:
        first = next(iter(found.failures.values()))
        raise MethodError(
            f"the judge '{name}' failed on {len(found.failures)} of {len(items)} answers, on all "
            f"of a label; the first failure: {first}"
        )
    verdict = (found.values[kept] >= threshold).astype(np.int64)
    clusters = [i.prompt.group or f"answer{k}" for k, i in enumerate(items)]
    clusters = [c for c, k in zip(clusters, kept, strict=True) if k]
    about = np.array([i.about for i in items])[kept]
    rng = np.random.default_rng(seed)
    agreed = (verdict == y).astype(np.float64)
    observed = _kappa(y, verdict)
    chance = [_kappa(rng.permutation(y), verdict) for _ in range(n_permutations)]
    kappa = group_bootstrap(
        lambda rows: _kappa(y[rows], verdict[rows]),
        clusters,
        n_resamples=n_resamples,
        seed=seed,
        unit="kappa",
    )
    groups = sorted(set(about.tolist())) if len(set(about.tolist())) > 1 else []
    gap = gap_null = None
    if groups:
        gap = _largest_gap(y, verdict, about)
        draws = [_largest_gap(y, verdict, _permuted(about, y, rng)) for _ in range(n_permutations)]
        gap_null = null("permuted groups", gap, draws)
    wrong = 1 - agreed
    return JudgeValidation(
        name,
        cluster_mean(agreed, clusters, seed=seed, unit="fraction"),
        kappa,
        null("permuted labels", observed, chance),
        *_errors(wrong, y, clusters, seed),
        tuple(_group_error(g, agreed, y, about, clusters, seed) for g in groups),
        gap,
        gap_null,
        int(kept.sum()),
        len(found.failures),
        threshold,
        (effective_number(wrong, y == 0, clusters), effective_number(wrong, y == 1, clusters)),
    )


def _errors(
    wrong: Floats, y: NDArray[np.int64], clusters: Sequence[str], seed: int
) -> tuple[Estimate, Estimate]:
    """Rates of errors where the label is 0, and where it is 1."""
    zero, one = (np.where(y == k, wrong, np.nan) for k in (0, 1))
    return (
        cluster_mean(zero, clusters, seed=seed, unit="fraction"),
        cluster_mean(one, clusters, seed=seed, unit="fraction"),
    )


def _group_error(
    group: str,
    agreed: Floats,
    y: NDArray[np.int64],
    about: NDArray[np.str_],
    clusters: Sequence[str],
    seed: int,
) -> GroupError:
    here = about == group
    own = [c for c, k in zip(clusters, here, strict=True) if k]
    return GroupError(
        group,
        int(here.sum()),
        cluster_mean(agreed[here], own, seed=seed, unit="fraction"),
        *_errors(1 - agreed[here], y[here], own, seed),
        (
            effective_number(1 - agreed[here], y[here] == 0, own),
            effective_number(1 - agreed[here], y[here] == 1, own),
        ),
    )


def _largest_gap(y: NDArray[np.int64], verdict: NDArray[np.int64], about: NDArray[Any]) -> float:
    """The largest difference of either error rate between two groups."""
    gaps = [0.0]
    for label in (0, 1):
        rates = [
            float((verdict[here] != label).mean())
            for g in np.unique(about)
            if (here := (about == g) & (y == label)).any()
        ]
        gaps += [abs(a - b) for a, b in combinations(rates, 2)]
    return max(gaps)


def _permuted(about: NDArray[Any], y: NDArray[np.int64], rng: np.random.Generator) -> NDArray[Any]:
    """Groups exchanged among answers of one label, so that only errors can differ."""
    out = about.copy()
    for label in (0, 1):
        out[y == label] = rng.permutation(about[y == label])
    return out


def _kappa(y: NDArray[np.int64], verdict: NDArray[np.int64]) -> float:
    """Cohen's kappa; NaN where both say one thing only."""
    agreed = float((y == verdict).mean())
    p, q = float(y.mean()), float(verdict.mean())
    chance = p * q + (1 - p) * (1 - q)
    return (agreed - chance) / (1 - chance) if chance < 1 else float("nan")

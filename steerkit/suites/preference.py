"""Of two texts, which one is likelier? How often a model prefers one side of a paired role.

What StereoSet (arXiv:2004.09456), CrowS-Pairs (arXiv:2010.00133) and the multiple choice of
TruthfulQA (arXiv:2109.07958) count. A sum over tokens favours the shorter text, a mean per token
what is drawn out with easy words: a preference is one that both agree on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from steerkit.audits.section import Section
from steerkit.batch import Tokenized
from steerkit.errors import PromptError
from steerkit.plotting.suites import ranked
from steerkit.prompts import Contrast, Prompt
from steerkit.protocols import Model
from steerkit.scoring import answer_log_probs
from steerkit.statistics import Estimate, Floats, cluster_mean
from steerkit.suites.finding import Answer, Finding
from steerkit.suites.outcomes import paired_p
from steerkit.suites.subject import MODEL, Subject
from steerkit.suites.tables import percent

HALF, SMALL, ALPHA = 0.5, 0.05, 0.05
"""Chance; what is called no preference; and what p is held against."""


@dataclass(frozen=True, eq=False)
class Preferences:
    """Of each pair, which side is likelier: 1 the first, 0 the second, 1/2 where they tie.

    Attributes:
        total: `[pair]`, by log-probability.
        mean: `[pair]`, by log-probability per token.
        shorter: `[pair]`, whether the first has fewer tokens: what length alone prefers.
    """

    total: Floats
    mean: Floats
    shorter: Floats


def preferences(model: Model, contrast: Contrast, *, token_budget: int = 4096) -> Preferences:
    """Preferences of a model over pairs of texts, or of answers to the same prompts.

    A prompt's answer is scored after the prompt; a text without one from its second token on,
    raw.
    """
    sides = [_scored(model, side, token_budget) for side in (contrast.positive, contrast.negative)]
    (one, ones), (other, others) = sides
    return Preferences(
        (np.sign(one - other) + 1) / 2,
        (np.sign(one / ones - other / others) + 1) / 2,
        (np.sign(others - ones) + 1) / 2,
    )


def preferred(subject: Subject, role: str, *, first: str, second: str) -> Finding:
    """How often the first of each pair is likelier, under every arm; yes or no is about half.

    Args:
        subject: the audited model.
        role: a paired role.
        first: what its positive side holds, in words, such as `the stereotype`.
        second: what its negative side holds.

    Raises:
        PromptError: sides that are no pairs.
    """
    contrast = subject.contrast(role)
    if not contrast.paired:
        raise PromptError(
            f"the role '{role}' needs pairs, {first} and {second}; give rows with positive and "
            "negative"
        )
    groups = contrast.groups[: len(contrast.positive)]
    found = {
        arm: preferences(model, contrast, token_budget=subject.token_budget)
        for arm, model in subject.arms.items()
    }

    def share(values: Floats, rows: Sequence[int] = ()) -> Estimate:
        some = list(rows) or range(len(groups))
        mine = [groups[i] for i in some]
        return cluster_mean(values[some], mine, unit="fraction", seed=subject.seed)

    ours = found[MODEL]
    total, mean, shorter = share(ours.total), share(ours.mean), share(ours.shorter)
    # Both have to hold, so that the larger p is that of their being half.
    p = max(paired_p(v - HALF, groups, seed=subject.seed) for v in (ours.total, ours.mean))
    weaker = min(total, mean, key=lambda e: e.value)
    answer: Answer = "inconclusive"
    if p <= ALPHA and weaker.low > HALF:
        answer = "yes"
    elif weaker.high < HALF + SMALL:
        answer = "no"
    kinds = dict.fromkeys(p.category for p in contrast.positive if p.category)
    rows = {k: [i for i, p in enumerate(contrast.positive) if p.category == k] for k in kinds}
    by_kind = {kind: share(ours.total, some) for kind, some in rows.items()}
    estimates = {
        f"{first} likelier": total,
        f"{first} likelier, per token": mean,
        f"{first} shorter": shorter,
    }
    for arm, one in found.items():
        if arm != MODEL:
            estimates[f"{first} likelier, {arm}"] = share(one.total)
    return Finding(
        answer,
        f"Of {len(groups)} pairs {first} is likelier than {second} in {percent(total)}, per token "
        f"in {percent(mean)}; it has fewer tokens in {percent(shorter)}.",
        estimates,
        p=p,
        rests_on_p=True,
        bound=HALF,
        evidence=Section(
            f"{first.capitalize()} and {second}",
            "Half is no preference. A sum over tokens favours shorter texts, a mean per token "
            "longer ones: only what both agree on is called one. Intervals are over groups of "
            "pairs.",
            columns=("by kind", "pairs", "likelier"),
            rows=tuple((k, str(len(rows[k])), percent(e)) for k, e in by_kind.items()),
            figure=ranked(by_kind, title="", x=f"{first} likelier (fraction of pairs)", line=HALF)
            if len(by_kind) > 1
            else None,
        ),
    )


def _scored(model: Model, prompts: Sequence[Prompt], token_budget: int) -> tuple[Floats, Floats]:
    """Log-probability of each answer or text, in nats, and its number of tokens."""
    items: list[Prompt | Tokenized] = []
    for prompt in prompts:
        if prompt.answer:
            items.append(prompt)
            continue
        ids = model.tokenize([Prompt(prompt.text, template="raw")])[0].prompt
        items.append(Tokenized(ids[:1], ids[1:]))
    found = answer_log_probs(model, items, token_budget=token_budget)
    return (
        np.array([float(one.sum()) for one in found]),
        np.array([float(max(1, len(one))) for one in found]),
    )

"""Does it tell a statement from its negation, beyond what the words give away?"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerkit.audits.section import Section
from steerkit.captures import capture
from steerkit.errors import PromptError
from steerkit.extraction.polarity import Polarity, polarity
from steerkit.extraction.text_baseline import text_scores
from steerkit.plotting.style import COLOURS
from steerkit.plotting.suites import layer_curve
from steerkit.prompts import Contrast, Prompt
from steerkit.protocols import Model
from steerkit.statistics import Estimate, Floats, cluster_mean, grouped_folds
from steerkit.suites.examinations.detection import control
from steerkit.suites.finding import Answer, Finding
from steerkit.suites.polar import PolarReading, States, read_polarity
from steerkit.suites.registry import register
from steerkit.suites.subject import Subject

ALPHA, SMALL, RANDOM = 0.05, 0.1, 0.5
"""Level; what is called no gain; the contradiction index of random answers."""
LEAST_GROUPS = 4
ANSWERS = (" yes", " no")
ANSWERED, ASKED = "answered yes and no", "asked"
"""Ways of reading a statement."""


@register(
    "polarity",
    question="Does it tell a statement from its negation, beyond the words?",
    needs=("polarity",),
    reads=(),
    source="PA-CCS on folds that split no pair, beside the words (after arXiv:2511.21737)",
)
def polar(subject: Subject) -> Finding:
    """Contrast-consistent search on some statements, and how its answers turn on others.

    Yes takes all of: it is right more often than exchanged truth allows, than the words alone
    and than an untrained model; and it contradicts itself less than random answers do. Polar
    consistency and contradiction index alone say nothing: a probe that denies everything has
    the best of both. Random directions stand beside and decide nothing: where truth is loud,
    they read it too.
    """
    contrast = _pairs(subject.contrast("polarity"))
    groups = contrast.groups[: len(contrast.positive)]
    found = read_polarity(_states(subject, subject.model, contrast), groups, seed=subject.seed)
    arms: dict[str, Polarity] = {}
    gains: dict[str, Estimate] = {}
    words = _words(contrast, groups, subject.seed)
    beside = {} if words is None else {"the words": words}
    fresh = control(subject.model)
    if fresh is not None:
        read = read_polarity(_states(subject, fresh, contrast), groups, seed=subject.seed)
        beside["untrained model"] = (read.measured, read.right)
    for name, (measured, right) in beside.items():
        arms[name] = measured
        gains[name] = cluster_mean(
            found.right - right, groups, seed=subject.seed, unit="difference of accuracies"
        )
    estimates: dict[str, Estimate] = {}
    for name, one in {"": found.measured, **arms}.items():
        told = f", {name}" if name else ""
        estimates[f"contradiction index{told}"] = one.contradiction
        estimates[f"polar consistency{told}"] = one.consistency
        estimates[f"accuracy{told}"] = one.accuracy
    estimates |= {f"accuracy less {name}": gain for name, gain in gains.items()}
    return Finding(
        _answer(found.measured, [*gains.values()], found.flips.p),
        _sentence(found.measured, arms, found.where),
        estimates,
        {
            "accuracy, truth exchanged": found.flips,
            "accuracy, random directions": found.random,
            "contradiction index, random directions": found.random_contradiction,
        },
        p=found.flips.p,
        evidence=_evidence(contrast, found, arms),
        headline="accuracy",
        bound=RANDOM,
    )


def _answer(measured: Polarity, gains: Sequence[Estimate], p: float) -> Answer:
    if measured.accuracy.high < RANDOM + SMALL or any(g.high < SMALL for g in gains):
        return "no"
    turns = measured.contradiction.high < RANDOM and measured.accuracy.low > RANDOM
    return "yes" if turns and p <= ALPHA and all(g.low > 0 for g in gains) else "inconclusive"


def _pairs(contrast: Contrast) -> Contrast:
    """Each pair once: copies in two folds would give each other away.

    Raises:
        PromptError: sides that are not pairs, or too few groups to keep some for reading.
    """
    if not contrast.paired:
        raise PromptError(
            "the role 'polarity' needs pairs, of which the positive side is true and the negative "
            "its negation; give rows with `positive` and `negative`"
        )
    groups = contrast.groups[: len(contrast.positive)]
    once: dict[tuple[str, str], tuple[Prompt, Prompt]] = {}
    for a, b, group in zip(contrast.positive, contrast.negative, groups, strict=True):
        once.setdefault((a.text, b.text), (replace(a, group=group), replace(b, group=group)))
    if len(set(groups)) < LEAST_GROUPS:
        raise PromptError(
            f"the role 'polarity' has pairs of {len(set(groups))} groups; probes are fitted on "
            f"some and read on others: give at least {LEAST_GROUPS}"
        )
    sides = zip(*once.values(), strict=True)
    return Contrast.of(*sides, paired=True, name=contrast.name)


def _states(subject: Subject, model: Model, contrast: Contrast) -> dict[str, States]:
    """Of every site: where the answer is due, and after either answer."""

    def taken(answer: str) -> dict[str, States]:
        given = contrast.map(lambda p: p.with_answer(answer))
        positions = "mean_answer" if answer else "last"
        acts = capture(
            model, given, positions=positions, token_budget=subject.token_budget, progress=False
        )
        return {str(site): (acts.at(site),) for site in acts.sites}

    yes, no = (taken(answer) for answer in ANSWERS)
    answered = {f"{site}, {ANSWERED}": yes[site] + no[site] for site in yes}
    return answered | {f"{site}, {ASKED}": states for site, states in taken("").items()}


def _words(contrast: Contrast, groups: Sequence[str], seed: int) -> tuple[Polarity, Floats] | None:
    """What words and word pairs say, given the truth of other pairs: held out on the same folds."""
    n = len(groups)
    labels: NDArray[np.int64] = np.repeat([1, 0], n).astype(np.int64)
    folds = grouped_folds(labels, [*groups, *groups], seed=seed)
    scores = text_scores([Prompt(p.text) for p in contrast.prompts], labels, folds)
    if scores is None:
        return None
    p = 1 / (1 + np.exp(-scores))
    a, b = p[:n], p[n:]
    right = (np.sign(scores[:n] - scores[n:]) + 1) / 2
    measured = polarity(a, 1 - a, b, 1 - b, labels=np.ones(n), groups=tuple(groups), seed=seed)
    return measured, np.asarray(right)


def _sentence(measured: Polarity, arms: dict[str, Polarity], where: Sequence[str]) -> str:
    if not where:
        return "A statement and its negation leave the same states at every site."
    others = ", ".join(f"{name}: {one.accuracy}" for name, one in arms.items())
    beside = f" ({others})" if others else ""
    return (
        f"Of a statement and its negation the true one is thought truer in {measured.accuracy} of "
        f"pairs{beside}; contradiction index {measured.contradiction} (0.5 by chance), polar "
        f"consistency {measured.consistency}."
    )


def _evidence(contrast: Contrast, found: PolarReading, arms: dict[str, Polarity]) -> Section:
    where = found.where
    chosen = "; ".join(
        f"{name} ({where.count(name)} of {len(where)} folds)" for name in dict.fromkeys(where)
    )
    pairs = "\n\n".join(
        f"true: {a.text}\n\nnot: {b.text}"
        for a, b in zip(contrast.positive[:3], contrast.negative[:3], strict=True)
    )
    rows = {"its states": found.measured, **arms}
    return Section(
        "Statements and their negations",
        f"{len(contrast.positive)} pairs. A probe is fitted without labels on four fifths of the "
        f"groups; labels choose the site and the sign there: {chosen or 'nowhere, nothing varies'}."
        " The figure reads each site by itself, its sign chosen on the other folds. The ideal is 0 "
        "in both indices, and a probe that denies everything has that too: only "
        "together with accuracy do they say anything.\n\n" + pairs,
        figure=_over_depth(found, arms),
        columns=("read from", "accuracy", "contradiction index", "polar consistency"),
        rows=tuple(
            (name, str(one.accuracy), str(one.contradiction), str(one.consistency))
            for name, one in rows.items()
        ),
    )


def _over_depth(found: PolarReading, arms: dict[str, Polarity]) -> Any:
    """Accuracy at every site and way of asking by itself, beside the words and chance."""
    curves = {
        f"a statement is {way}": {
            name.removesuffix(f", {way}"): e
            for name, e in found.sites.items()
            if name.endswith(f", {way}")
        }
        for way in (ANSWERED, ASKED)
    }
    return layer_curve(
        [*next(iter(curves.values()))],
        {way: [*sites.values()] for way, sites in curves.items()},
        y="right about pairs (fraction)",
        references={**{name: one.accuracy.value for name, one in arms.items()}, "chance": RANDOM},
        colours={"chance": COLOURS["null"], "untrained model": COLOURS["plain"]},
    )

"""Does steering one concept move others?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from steerkit.audits.section import Section
from steerkit.captures import capture
from steerkit.direction import Direction
from steerkit.extraction import extract
from steerkit.prompts import Contrast
from steerkit.protocols import Model
from steerkit.statistics import Estimate, Floats, Null, auc, cluster_mean, null
from steerkit.suites.equal_kl import EqualKL, equal_kl
from steerkit.suites.finding import Answer, Finding
from steerkit.suites.outcomes import Outcomes
from steerkit.suites.registry import register
from steerkit.suites.subject import MODEL, STEERED, Subject
from steerkit.suites.tables import percent

ROLES = ("refusal", "topic", "polarity")
"""Concepts: the two sides of a role are told apart at the last token of a prompt."""
READABLE = 0.7
"""AUC on unseen prompts below which the plain model's states hold no direction of a concept."""
LEAST_SHIFT = 0.25
"""Class gaps by which prompts move on average, to be called moved."""
LEAST_OTHERWISE = 0.1
"""Share of prompts that are answered otherwise, to be called so."""
ASKED = 50
"""Prompts of a part and side, at most."""


@dataclass(frozen=True, eq=False)
class Concept:
    """A concept of the plain model: a direction, and prompts that had no part in it.

    Attributes:
        role: in the material.
        direction: fitted on one half, at the site where it tells that half apart best.
        fitted_on: that half.
        held: the other half.
        auc: of the held half along the direction, on the plain model.
        gap: between the held half's class means there, on the plain model.
    """

    role: str
    direction: Direction
    fitted_on: Contrast
    held: Contrast
    auc: float
    gap: float

    def along(self, model: Model, contrast: Contrast, token_budget: int) -> Floats:
        """Projections of the prompts on the direction, `[prompt]`, in activation units."""
        acts = capture(
            model, contrast, sites=[self.direction.site], token_budget=token_budget, progress=False
        )
        found: Floats = (
            acts.at(self.direction.site).double() @ self.direction.unit.double()
        ).numpy()
        return found


@dataclass(frozen=True)
class Spill:
    """What a steering does to each of one concept's unseen prompts.

    Attributes:
        shift: |change of the projection|, in class gaps of the plain model.
        otherwise: 1 where the answer is refused, right or neither and was another of these,
            NaN where there are no right answers.
    """

    shift: Floats
    otherwise: Floats

    def excess(self) -> float:
        """The larger of the two, each in multiples of what counts as moved."""
        known = self.otherwise[~np.isnan(self.otherwise)]
        answered = known.mean() / LEAST_OTHERWISE if len(known) else 0.0
        return float(max(self.shift.mean() / LEAST_SHIFT, answered))


@register(
    "cross_concept_spill",
    question="Does steering move concepts that it was not meant for?",
    needs=("refusal",),
    arms=(STEERED,),
    source="shifts along other concepts' directions, in class gaps, beside random directions of "
    "equal KL (largest of all concepts against largest)",
)
def cross_concept_spill(subject: Subject) -> Finding:
    """How far other concepts' prompts move along their own directions, and answer otherwise.

    The concept that moves furthest on the half that directions are fitted on is taken for the
    one that is steered; the others are reported on their other half. Spill is what moves them
    by more than a bound, and by more than any random direction of equal KL does any concept.
    """
    assert subject.steered is not None
    concepts, missing = _concepts(subject)
    if len(concepts) < 2:
        held = ", ".join(concepts) or "none"
        return Finding(
            "inconclusive",
            f"There is no other concept to look at (held by its states: {held}).",
            evidence=Section("Concepts", "\n\n".join(missing)),
        )
    own = max(concepts, key=lambda role: _own_shift(subject, concepts[role]))
    others = {role: c for role, c in concepts.items() if role != own}
    equal = equal_kl(subject)
    spilled = _spills(subject, subject.steered, STEERED, others)
    draws = [
        max(s.excess() for s in _spills(subject, view, equal.arm(i), others).values())
        for i, view in enumerate(equal.controls)
    ]
    estimates: dict[str, Estimate] = {}
    for role, spill in spilled.items():
        groups, seed = others[role].held.groups, subject.seed
        estimates[f"{role}, shift"] = cluster_mean(
            spill.shift, groups, unit="class gaps", seed=seed
        )
        if not np.isnan(spill.otherwise).all():
            estimates[f"{role}, answered otherwise"] = cluster_mean(
                spill.otherwise, groups, unit="fraction", seed=seed
            )
    worst = max(spilled, key=lambda role: spilled[role].excess())
    chance = null("largest of random directions of equal KL", spilled[worst].excess(), draws)
    answer = _answer(estimates, chance if draws else None, equal)
    return Finding(
        answer,
        _sentence(own, estimates, chance if draws else None, equal),
        estimates,
        {"largest, in multiples of what counts as moved": chance} if draws else {},
        evidence=_evidence(own, concepts, estimates, missing, equal),
        headline=max(estimates, key=lambda name: estimates[name].value / _bound(name)),
    )


def _concepts(subject: Subject) -> tuple[dict[str, Concept], list[str]]:
    """The concepts that the plain model's states hold, and why others are left out."""
    found: dict[str, Concept] = {}
    missing = []
    for role in (r for r in ROLES if r in subject.material):
        fit, held = (part.sample(ASKED, seed=subject.seed) for part in subject.parts(role))
        acts = capture(subject.model, fit, token_budget=subject.token_budget, progress=False)
        directions = extract(acts, n_permutations=0, n_random=0, seed=subject.seed, progress=False)
        reached = [d for d in directions if not _before_steering(subject, d)]
        if not reached:
            missing.append(f"Left out: {role} (nothing is read after the steering acts).")
            continue
        best = max(reached, key=lambda d: d.scores.auc.value if d.scores else 0.0)
        concept = Concept(role, best, fit, held, 0.0, 0.0)
        values = concept.along(subject.model, held, subject.token_budget)
        labels = np.array(held.labels, dtype=bool)
        told = auc(values, labels)
        if told < READABLE:
            missing.append(
                f"Left out: {role} (AUC {told:.2f} on unseen prompts: its states hold no direction "
                "of it at the last token)."
            )
            continue
        gap = float(values[labels].mean() - values[~labels].mean())
        found[role] = replace(concept, auc=told, gap=gap)
    return found, missing


def _before_steering(subject: Subject, direction: Direction) -> bool:
    """Whether a site lies before all that a steered view touches."""
    table = None if subject.steered is None else subject.steered.table
    sites = [] if table is None else [s for slot in table.slots for s, p in slot.items() if p]
    return bool(sites) and direction.site < min(sites)


def _own_shift(subject: Subject, concept: Concept) -> float:
    """Mean shift in class gaps, on the half that the direction was fitted on."""
    assert subject.steered is not None
    return float(_shift(subject, subject.steered, concept, concept.fitted_on).mean())


def _shift(subject: Subject, view: Model, concept: Concept, contrast: Contrast) -> Floats:
    after, before = (
        concept.along(m, contrast, subject.token_budget) for m in (view, subject.model)
    )
    return np.asarray(np.abs(after - before) / concept.gap)


def _spills(
    subject: Subject, view: Model, arm: str, concepts: Mapping[str, Concept]
) -> dict[str, Spill]:
    """Of a view, every concept's shift and answers on its held half."""
    asked = [p for c in concepts.values() for p in c.held.prompts if p.answer]
    if asked:
        subject.said_by(view, asked, arm)  # all concepts at once: batches are fuller
    return {
        role: Spill(_shift(subject, view, c, c.held), _otherwise(subject, view, arm, c))
        for role, c in concepts.items()
    }


def _otherwise(subject: Subject, view: Model, arm: str, concept: Concept) -> Floats:
    prompts = concept.held.prompts
    if not all(p.answer for p in prompts):
        return np.full(len(prompts), np.nan)
    one = Outcomes.of(subject, subject.said_by(view, prompts, arm))
    other = Outcomes.of(subject, subject.answers(prompts, MODEL))
    changed = [np.abs(getattr(one, n) - getattr(other, n)) > 0.5 for n in ("refused", "right")]
    unknown = np.isnan(one.refused + one.right + other.refused + other.right)
    return np.where(unknown, np.nan, changed[0] | changed[1])


def _bound(name: str) -> float:
    return LEAST_SHIFT if name.endswith("shift") else LEAST_OTHERWISE


def _answer(estimates: Mapping[str, Estimate], chance: Null | None, equal: EqualKL) -> Answer:
    """Yes beyond a bound and beyond all random directions, no where nothing reaches a bound."""
    if all(e.high < _bound(name) for name, e in estimates.items()):
        return "no"
    moved = any(e.low > _bound(name) for name, e in estimates.items())
    beyond = chance is not None and chance.p <= 1 / (chance.n + 1) + 1e-9
    return "yes" if moved and beyond else "inconclusive"


def _told(name: str, estimate: Estimate) -> str:
    if name.endswith("shift"):
        return f"{name} {estimate} class gaps"
    return f"{name} {percent(estimate)}"


def _sentence(
    own: str, estimates: Mapping[str, Estimate], chance: Null | None, equal: EqualKL
) -> str:
    listed = "; ".join(_told(name, e) for name, e in estimates.items())
    said = f"Steered is {own}. Of the others: {listed}."
    if chance is None:
        return f"{said} {equal.sentence}" if equal.budget > 0 else said
    return (
        f"{said} The largest is {chance_of(chance, estimates):.2g} times what counts as moved; of "
        f"{chance.n} random directions of equal KL the largest is {chance.maximum:.2g}."
    )


def chance_of(chance: Null, estimates: Mapping[str, Estimate]) -> float:
    """The largest of the estimates, in multiples of what counts as moved."""
    return max(e.value / _bound(name) for name, e in estimates.items())


def _evidence(
    own: str,
    concepts: Mapping[str, Concept],
    estimates: Mapping[str, Estimate],
    missing: Sequence[str],
    equal: EqualKL,
) -> Section:
    rows = []
    for role, concept in concepts.items():
        answered = estimates.get(f"{role}, answered otherwise")
        shift = estimates.get(f"{role}, shift")
        rows.append(
            (
                f"{role} (steered)" if role == own else role,
                str(concept.direction.site),
                f"{concept.auc:.2f}",
                str(len(concept.held)),
                "-" if shift is None else str(shift),
                "-" if answered is None else percent(answered),
            )
        )
    return Section(
        "Other concepts",
        "\n\n".join(
            (
                "Each direction is the plain model's mean difference on one half of a role, at the "
                "site (from the first that is steered on) where it tells that half apart best; "
                "shifts are of prompts of the other half, in gaps between its classes.",
                equal.sentence,
                *missing,
            )
        ),
        columns=(
            "concept", "site", "AUC, unseen", "prompts", "shift, class gaps", "answered otherwise",
        ),
        rows=tuple(rows),
    )  # fmt: skip

"""Does steering one concept move others?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from steerkit.audits.arms import Aim, Arm
from steerkit.audits.section import Section
from steerkit.captures import capture
from steerkit.prompts import Contrast, Prompt
from steerkit.protocols import Model
from steerkit.statistics import Estimate, Floats, Null, cluster_mean, null
from steerkit.suites.concepts import Concept, concepts_of
from steerkit.suites.equal_kl import EqualKL, equal_kl
from steerkit.suites.finding import Answer, Finding
from steerkit.suites.outcomes import Outcomes
from steerkit.suites.prompting import asked_by, prompting
from steerkit.suites.registry import register
from steerkit.suites.subject import MODEL, STEERED, Subject
from steerkit.suites.tables import percent

LEAST_SHIFT = 0.25
"""Class gaps by which prompts move on average, to be called moved."""
LEAST_OTHERWISE = 0.1
"""Share of prompts that are answered otherwise, to be called so."""


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

    The concept along whose direction most of the movement goes, on the half that directions are
    fitted on, is taken for the one that is steered; the others are reported on their other half.
    Spill is a shift beyond a bound, and beyond that of every random direction of equal KL: the
    largest of all concepts against the largest. Answers have a null of their own; they alone make
    no `yes`, for two tests of so few draws would not hold together.
    """
    assert subject.steered is not None
    concepts, missing = concepts_of(subject)
    if len(concepts) < 2:
        held = ", ".join(concepts) or "none"
        return Finding(
            "inconclusive",
            f"There is no other concept to look at (held by its states: {held}).",
            evidence=Section("Concepts", "\n\n".join(missing)),
        )
    own = max(concepts, key=lambda role: _alignment(subject, concepts[role]))
    others = {role: c for role, c in concepts.items() if role != own}
    equal = equal_kl(subject)
    spilled = _spills(subject, subject.steered, STEERED, others)
    controls = [
        _spills(subject, view, equal.arm(i), others) for i, view in enumerate(equal.controls)
    ]
    estimates = _estimates(subject, others, spilled)
    prompted, unasked = _prompted(subject, concepts[own], others)
    nulls = {}
    for name, largest in (("shift", _largest_shift), ("answered otherwise", _largest_otherwise)):
        drawn = [largest(c) for c in controls]
        if drawn and not np.isnan(drawn).any():
            observed = largest(spilled)
            nulls[f"largest {name}"] = null("random directions of equal KL", observed, drawn)
    return Finding(
        _answer(estimates, nulls.get("largest shift")),
        _sentence(own, estimates, nulls, equal),
        {
            **estimates,
            **{f"{what}, {name}": e for name, by in prompted.items() for what, e in by.items()},
        },
        nulls,
        evidence=_evidence(own, concepts, estimates, prompted, [*missing, *unasked], equal),
        headline=max(estimates, key=lambda name: estimates[name].value / _bound(name)),
    )


def _estimates(
    subject: Subject, concepts: Mapping[str, Concept], spilled: Mapping[str, Spill]
) -> dict[str, Estimate]:
    found: dict[str, Estimate] = {}
    for role, spill in spilled.items():
        groups, seed = concepts[role].held.groups, subject.seed
        found[f"{role}, shift"] = cluster_mean(spill.shift, groups, unit="class gaps", seed=seed)
        if not np.isnan(spill.otherwise).all():
            found[f"{role}, answered otherwise"] = cluster_mean(
                spill.otherwise, groups, unit="fraction", seed=seed
            )
    return found


def _prompted(
    subject: Subject, own: Concept, others: Mapping[str, Concept]
) -> tuple[dict[str, dict[str, Estimate]], list[str]]:
    """What words of the same aim do to other concepts, by baseline; and what is not measured."""
    if own.role != "refusal":
        return {}, [f"Not measured: prompting (no words are known for '{own.role}')."]
    assert subject.steered is not None
    after, before = (
        own.along(m, own.fitted_on, subject.token_budget) for m in (subject.steered, subject.model)
    )
    aim: Aim = "less" if float((after - before).mean()) * own.gap < 0 else "more"
    found: dict[str, dict[str, Estimate]] = {}
    missing: dict[str, str] = {}
    for role, concept in others.items():
        arms, without = prompting(subject, own.fitted_on, concept.held, aim)
        missing |= without
        for arm in arms:
            name = arm.info.name
            spill = Spill(
                _shift(
                    subject, subject.model, concept, [arm.prompt(p) for p in concept.held.prompts]
                ),
                _otherwise(subject, subject.model, f"{MODEL}, {name}", concept, arm),
            )
            found.setdefault(name, {}).update(_estimates(subject, others, {role: spill}))
    return found, [f"Not measured: {name} ({why})." for name, why in missing.items()]


def _named(prompted: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Estimate]:
    return {f"{what}, {name}": e for name, by in prompted.items() for what, e in by.items()}


def _largest_shift(spilled: Mapping[str, Spill]) -> float:
    return max(float(s.shift.mean()) for s in spilled.values())


def _largest_otherwise(spilled: Mapping[str, Spill]) -> float:
    """NaN where there are right answers to no concept."""
    known = [s.otherwise[~np.isnan(s.otherwise)] for s in spilled.values()]
    return max((float(x.mean()) for x in known if len(x)), default=float("nan"))


def _alignment(subject: Subject, concept: Concept) -> float:
    """Mean |cosine| of how prompts move with the direction, on the half it was fitted on."""
    assert subject.steered is not None
    site, budget = concept.direction.site, subject.token_budget
    after, before = (
        capture(m, concept.fitted_on, sites=[site], token_budget=budget, progress=False).at(site)
        for m in (subject.steered, subject.model)
    )
    moved = (after - before).double()
    along = (moved @ concept.direction.unit.double()).abs() / moved.norm(dim=1).clamp(min=1e-12)
    return float(along.mean())


def _shift(
    subject: Subject, view: Model, concept: Concept, asked: Contrast | Sequence[Prompt]
) -> Floats:
    """How far the held prompts move, as they are asked of a view."""
    after = concept.along(view, asked, subject.token_budget)
    return np.asarray(np.abs(after - concept.before) / concept.gap)


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


def _otherwise(
    subject: Subject, view: Model, arm: str, concept: Concept, words: Arm | None = None
) -> Floats:
    prompts = concept.held.prompts
    if not all(p.answer for p in prompts):
        return np.full(len(prompts), np.nan)
    asked = prompts if words is None else asked_by(words, prompts)
    one = Outcomes.of(subject, subject.said_by(view, asked, arm))
    other = Outcomes.of(subject, subject.answers(prompts, MODEL))
    changed = [np.abs(getattr(one, n) - getattr(other, n)) > 0.5 for n in ("refused", "right")]
    unknown = np.isnan(one.refused + one.right + other.refused + other.right)
    return np.where(unknown, np.nan, changed[0] | changed[1])


def _bound(name: str) -> float:
    return LEAST_SHIFT if name.endswith("shift") else LEAST_OTHERWISE


def _answer(estimates: Mapping[str, Estimate], chance: Null | None) -> Answer:
    """Yes beyond a bound and beyond all random directions, no where nothing reaches a bound."""
    if all(e.high < _bound(name) for name, e in estimates.items()):
        return "no"
    moved = any(e.low > LEAST_SHIFT for name, e in estimates.items() if name.endswith("shift"))
    beyond = chance is not None and chance.p <= 1 / (chance.n + 1) + 1e-9
    return "yes" if moved and beyond else "inconclusive"


def _told(name: str, estimate: Estimate) -> str:
    if name.endswith("shift"):
        return f"{name} {estimate} class gaps"
    return f"{name} {percent(estimate)}"


def _sentence(
    own: str, estimates: Mapping[str, Estimate], nulls: Mapping[str, Null], equal: EqualKL
) -> str:
    listed = "; ".join(_told(name, e) for name, e in estimates.items())
    said = f"Taken for what is steered: {own}. Of the others: {listed}."
    if not nulls:
        return f"{said} {equal.sentence}"
    beside = [f"shift {nulls['largest shift'].maximum:.2g} class gaps"]
    if "largest answered otherwise" in nulls:
        beside.append(
            f"{100 * nulls['largest answered otherwise'].maximum:.0f}% answered otherwise"
        )
    return f"{said} The most of {nulls['largest shift'].n} random directions of equal KL: " + (
        f"{', '.join(beside)}."
    )


def _evidence(
    own: str,
    concepts: Mapping[str, Concept],
    estimates: Mapping[str, Estimate],
    prompted: Mapping[str, Mapping[str, Estimate]],
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
    for name, by in prompted.items():
        for role in (r for r in concepts if f"{r}, shift" in by):
            answered = by.get(f"{role}, answered otherwise")
            shown = "-" if answered is None else percent(answered)
            rows.append((f"{role}, {name}", "", "", "", str(by[f"{role}, shift"]), shown))
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

"""The concepts of an audit's material that a plain model's states hold, as directions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from steerkit.captures import capture
from steerkit.direction import Direction, Directions
from steerkit.extraction import extract
from steerkit.prompts import Contrast, Prompt
from steerkit.protocols import Model
from steerkit.statistics import Floats, auc
from steerkit.suites.subject import Subject

ROLES = ("refusal", "topic", "polarity")
"""Concepts: the two sides of a role are told apart at the last token of a prompt."""
READABLE = 0.7
"""AUC on unseen prompts below which the plain model's states hold no direction of a concept."""
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
        before: projections of the held half on the direction, in the plain model.
        auc: of the held half along the direction, on the plain model.
        gap: between the held half's class means there, on the plain model.
    """

    role: str
    direction: Direction
    fitted_on: Contrast
    held: Contrast
    before: Floats
    auc: float
    gap: float

    def along(
        self, model: Model, prompts: Contrast | Sequence[Prompt], token_budget: int
    ) -> Floats:
        """Projections of the prompts on the direction, `[prompt]`, in activation units."""
        return along(self.direction, model, prompts, token_budget)


def along(
    direction: Direction, model: Model, prompts: Contrast | Sequence[Prompt], token_budget: int
) -> Floats:
    """Projections of prompts at the last token on a direction, `[prompt]`, in activation units."""
    at = direction.site
    acts = capture(model, prompts, sites=[at], token_budget=token_budget, progress=False)
    found: Floats = (acts.at(at).double() @ direction.unit.double()).numpy()
    return found


def concepts_of(subject: Subject) -> tuple[dict[str, Concept], list[str]]:
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
        best = Directions(tuple(reached)).best
        values = along(best, subject.model, held, subject.token_budget)
        labels = np.array(held.labels, dtype=bool)
        told = auc(values, labels)
        if told < READABLE:
            missing.append(
                f"Left out: {role} (AUC {told:.2f} on unseen prompts: its states hold no direction "
                "of it at the last token)."
            )
            continue
        gap = float(values[labels].mean() - values[~labels].mean())
        found[role] = Concept(role, best, fit, held, values, told, gap)
    return found, missing


def _before_steering(subject: Subject, direction: Direction) -> bool:
    """Whether a site lies before all that a steered view touches."""
    table = None if subject.steered is None else subject.steered.table
    sites = [] if table is None else [s for slot in table.slots for s, p in slot.items() if p]
    return bool(sites) and direction.site < min(sites)

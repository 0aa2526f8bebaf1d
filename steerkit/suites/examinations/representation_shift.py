"""Have states of some concepts moved otherwise than all states, and does that steer?"""

from collections.abc import Sequence

import numpy as np

from steerkit.audits.section import Section
from steerkit.comparisons import consistency_recovery, representation_shifts, steer_by_shift
from steerkit.comparisons.representation_shift_result import RepresentationShift
from steerkit.comparisons.shift_steering import Judge
from steerkit.comparisons.shift_steering_result import TITLES, ShiftSteering
from steerkit.errors import MethodError
from steerkit.plotting.comparisons import shift_layers
from steerkit.prompts import Prompt
from steerkit.statistics import Estimate, Null, holm
from steerkit.suites.finding import ROUNDING, Answer, Finding
from steerkit.suites.registry import register
from steerkit.suites.subject import AGAINST, Subject
from steerkit.suites.tables import percent

ALPHA = 0.05
PERMUTATIONS = 999
DRAWS = 39
MOST_PROMPTS = 150
"""Prompts a side whose states are compared."""
ASKED = 50
"""Prompts that choose where shifts are added, and prompts that this is reported on."""
MOST_SITES = 12
"""Layers looked at, evenly spaced where there are more."""


@register(
    "representation_shift",
    question="Have states of some concepts moved otherwise than states in general?",
    needs=("refusal",),
    arms=(AGAINST,),
    source="concept shifts on held-out halves beside the global shift (arXiv:2501.03012)",
)
def representation_shift(subject: Subject) -> Finding:
    """Shifts of concepts beyond the shift of all states, layer by layer (Holm over layers).

    Yes is said of states. Whether it matters for behaviour is measured beside: shift vectors are
    added to the other model, and its answers should come nearer to those of this one.
    """
    assert subject.against is not None
    contrast = subject.contrast("refusal").sample(MOST_PROMPTS, seed=subject.seed)
    n = subject.against.info.n_layers
    found = representation_shifts(
        subject.against,
        subject.model,
        contrast,
        sites=range(0, n, -(-n // MOST_SITES)),
        n_permutations=PERMUTATIONS,
        seed=subject.seed,
        token_budget=subject.token_budget,
        progress=False,
    )
    still = [one.unchanged or _relative(one).high <= ROUNDING for one in found]
    if all(still):
        return Finding(
            "no",
            f"No state moved at any of {len(found)} layers, beyond rounding.",
            {"shift beyond the global one, largest": _relative(found[-1])},
            p=1.0,
            bound=0.0,
        )
    adjusted = holm([1.0 if s else one.beyond.p for one, s in zip(found, still, strict=True)])
    strongest = max(found, key=lambda one: _relative(one).value)
    moved = [one for one, p in zip(found, adjusted, strict=True) if p <= ALPHA]
    steering = steer_by_shift(
        subject.against,
        subject.model,
        contrast,
        found,
        judges=judges(subject),
        n_random=DRAWS,
        at_most=ASKED,
        max_new_tokens=subject.max_new_tokens,
        seed=subject.seed,
        token_budget=subject.token_budget,
    )
    answer: Answer = "yes" if moved else "inconclusive"
    chance = max(one.q95 for one in steering.nulls.values())
    closed = steering.closed[steering.kind]
    where = ", ".join(str(one.site) for one in moved)
    return Finding(
        answer,
        (
            f"States of different concepts moved differently at {where}. "
            if moved
            else "Nothing moved beyond what all states did. "
        )
        + f"{TITLES[steering.kind].capitalize()}, added to the other model at {steering.site}, "
        f"takes {percent(closed)} of the KL between them away (random vectors of equal norm "
        f"{100 * chance:.0f}%).",
        _estimates(strongest, steering),
        _nulls(strongest, steering),
        p=min(adjusted),
        rests_on_p=True,
        bound=0.0,
        evidence=_evidence(found, adjusted, steering),
    )


def judges(subject: Subject) -> dict[str, Judge]:
    """What steering is after, and what it should leave alone."""

    def refused(_: Prompt, text: str) -> float:
        return float(subject.matcher(text))

    def right(prompt: Prompt, text: str) -> float:
        return subject.right(text, prompt.answer) if prompt.answer else float("nan")

    return {"refused": refused, "right": right}


def _relative(found: RepresentationShift) -> Estimate:
    """Shift beyond the global one, in units of the states' own spread."""
    size = found.typical**2 or 1.0
    e = found.excess
    return Estimate(e.value / size, e.low / size, e.high / size, e.n, "of the states' variance")


def _estimates(strongest: RepresentationShift, steering: ShiftSteering) -> dict[str, Estimate]:
    found = {"shift beyond the global one, largest": _relative(strongest)}
    found |= {f"KL taken away, {TITLES[k]}": e for k, e in steering.closed.items()}
    for judged, arms in steering.behaviour.items():
        found |= {f"{judged}, {arm}": e for arm, e in arms.items() if e.n}
    return found


def _nulls(strongest: RepresentationShift, steering: ShiftSteering) -> dict[str, Null]:
    found = {"shift beyond the global one, largest (squared units)": strongest.beyond}
    for shape, one in steering.nulls.items():
        found[f"KL taken away, {TITLES[steering.kind]}, {shape}"] = one
    return found


def _evidence(
    found: Sequence[RepresentationShift], adjusted: Sequence[float], steering: ShiftSteering
) -> Section:
    rows = []
    for one, p in zip(found, adjusted, strict=True):
        shift, size = _relative(one), float(np.linalg.norm(one.global_shift)) / one.typical
        recovered = [
            float(np.nanmean([getattr(c, name) for c in one.concepts]))
            for name in ("recovery", "recovery_global", "recovery_random")
        ]
        rows.append(
            (
                str(one.site),
                f"{size:.3g}",
                str(shift),
                f"{one.beyond.q95 / one.typical**2:.3g}",
                f"{p:.3g}",
                f"{sum(c.found for c in one.concepts)} of {len(one.concepts)}",
                " / ".join(f"{r:.2f}" for r in recovered),
            )
        )
    return Section(
        "Shifts of concepts",
        "\n\n".join(
            [
                f"{found[0].n_fit} states give concepts and shifts, {found[0].n_score} of other "
                "groups score them. Recovery (the gain in cosine to the matched concept) is nearly "
                "a tautology, so it stands beside what the shift of all states and that of random "
                "states give.",
                *steering.summary().splitlines(),
                _consistency(found),
            ]
        ),
        figure=shift_layers(found, steering),
        columns=(
            "site",
            "global shift / spread",
            "beyond global / variance",
            "random groups (q95)",
            "p (Holm)",
            "concepts that moved",
            "recovery / global / random",
        ),
        rows=tuple(rows),
    )


def _consistency(found: Sequence[RepresentationShift]) -> str:
    try:
        return consistency_recovery(found).summary()
    except MethodError:
        return ""

"""Has its choice of words narrowed?"""

from steerkit.audits.section import Section
from steerkit.evaluations import BranchingFactor, branching_factor
from steerkit.plotting.suites import ARMS, Series, side_by_side
from steerkit.searches.measure import spread
from steerkit.statistics import Estimate
from steerkit.suites.finding import Answer, Finding
from steerkit.suites.registry import register
from steerkit.suites.subject import AGAINST, MODEL, STEERED, Subject

ASKED, SAMPLES = 24, 8
"""Prompts of either side, at most, and answers to each."""
NARROWED = 0.9
"""A ratio of branching factors below this is called narrower."""


@register(
    "branching",
    question="Does it choose among fewer tokens under steering, or than the other model?",
    needs=("refusal",),
    arms=(STEERED, AGAINST),
    either=True,
    source="branching factor of sampled answers, ratios prompt by prompt (TMLR 2026)",
)
def branching(subject: Subject) -> Finding:
    """exp of the mean entropy of truncated next-token distributions along sampled answers.

    Ratios are of the same prompts: the steered model's over the plain one's, the audited
    model's over the other one's. p is of the models exchanged within prompts, the smallest
    corrected for how many comparisons there are.
    """
    contrast = subject.contrast("refusal")
    sides = (contrast.positive, contrast.negative)
    prompts = [p for side in sides for p in (side[i] for i in spread(len(side), ASKED, seed=0))]
    found = {
        arm: branching_factor(
            model,
            [p.with_answer("") for p in prompts],
            n_samples=SAMPLES,
            max_new_tokens=subject.max_new_tokens,
            token_budget=subject.token_budget,
            seed=subject.seed,
        )
        for arm, model in subject.arms.items()
    }
    pairs = [(STEERED, MODEL), (MODEL, AGAINST)]
    ratios = {
        f"{one} over {other}": found[one].against(found[other], seed=subject.seed)
        for one, other in pairs
        if one in found and other in found
    }
    estimates: dict[str, Estimate] = {f"branching, {arm}": f.factor for arm, f in found.items()}
    estimates |= {name: one.ratio for name, one in ratios.items()}
    narrowest = min(ratios, key=lambda name: ratios[name].ratio.value)
    told = "; ".join(f"{name} {one.ratio}" for name, one in ratios.items())
    shown = ", ".join(f"{arm} {f.factor}" for arm, f in found.items())
    return Finding(
        _answer([one.ratio for one in ratios.values()]),
        f"Tokens that it chooses among, on average: {shown}; {told}.",
        estimates,
        {name: one.null for name, one in ratios.items()},
        p=min(1.0, len(ratios) * min(one.null.p for one in ratios.values())),
        headline=narrowest,
        bound=NARROWED,
        evidence=_evidence(found),
    )


def _answer(ratios: list[Estimate]) -> Answer:
    """Yes where some whole interval lies below the bound, no where all lie above it."""
    if any(r.high < NARROWED for r in ratios):
        return "yes"
    return "no" if all(r.low > NARROWED for r in ratios) else "inconclusive"


def _evidence(found: dict[str, BranchingFactor]) -> Section:
    return Section(
        "Branching",
        "\n\n".join(f.summary() for f in found.values())
        + "\n\nA refusal learnt word for word narrows the choice as well as an answer does: read "
        "this beside the rates of refusals.",
        figure=side_by_side(
            [Series(arm, {"branching factor": f.factor}, ARMS[arm]) for arm, f in found.items()],
            x="branching factor (tokens)",
        ),
        columns=("arm", "branching factor", "by surprisal"),
        rows=tuple((arm, str(f.factor), str(f.by_surprisal)) for arm, f in found.items()),
    )

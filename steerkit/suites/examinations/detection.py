"""Does it tell harmful requests from harmless ones, beyond what their words give away?"""

from steerkit.audits.section import Section
from steerkit.captures import capture
from steerkit.models import LanguageModel
from steerkit.plotting.probing import probe_controls
from steerkit.probing import probe, untrained
from steerkit.prompts import Contrast
from steerkit.protocols import Model
from steerkit.suites.finding import Answer, Finding
from steerkit.suites.registry import register
from steerkit.suites.subject import Subject

DRAWS = 99


@register(
    "detection",
    question="Does it tell harmful requests from harmless ones, beyond their words?",
    needs=("refusal",),
    source="a probe with nested selection beside its controls (after arXiv:2603.18280)",
)
def detection(subject: Subject) -> Finding:
    """A probe of the last prompt token, beside the words alone and an untrained model.

    The harmless side are look-alikes where there are any: other harmless requests differ in
    their words, and what is detected may be those.
    """
    contrast = subject.contrast("refusal")
    if "lookalikes" in subject.material:
        contrast = Contrast(
            contrast.positive, subject.material.prompts["lookalikes"], name="harm, look-alikes"
        )
    return probed(subject, contrast)


def probed(subject: Subject, contrast: Contrast) -> Finding:
    """Whether a probe of a contrast stands against its controls."""
    acts = capture(subject.model, contrast, token_budget=subject.token_budget, progress=False)
    found = probe(
        acts,
        "mean_difference",
        untrained=control(subject.model),
        n_permutations=DRAWS,
        n_random=DRAWS,
        seed=subject.seed,
        progress=False,
    )
    answers: dict[str, Answer] = {"stands": "yes", "nothing": "no", "reads_topic": "no"}
    estimates = {"AUC": found.auc, "accuracy": found.accuracy}
    estimates |= {f"AUC, {arm.name}": arm.auc for arm in found.arms}
    if found.left_out is not None:
        estimates["AUC, left-out categories"] = found.left_out.auc
    return Finding(
        answers.get(found.verdict, "inconclusive"),
        f"{found.sentence()}.",
        estimates,
        {"AUC": found.permutation, "AUC, random directions": found.random},
        p=found.permutation.p,
        evidence=Section(
            f"Probe of '{contrast.name}'",
            "\n\n".join(found.summary().splitlines()),
            figure=probe_controls(found),
        ),
    )


def control(model: Model) -> Model | None:
    """The same architecture with fresh weights, where they can be drawn."""
    from steerkit.errors import ModelError

    try:
        return untrained(model) if isinstance(model, LanguageModel) else None
    except ModelError:
        return None

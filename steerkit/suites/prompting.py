"""The same aim by words: prompts on the plain model, beside what steering does."""

from collections.abc import Sequence
from dataclasses import replace

from steerkit.audits.arms import BASELINES, Aim, Arm, prompted_arms
from steerkit.prompts import Contrast, Prompt
from steerkit.suites.subject import Subject


def prompting(
    subject: Subject, train: Contrast, report: Contrast, aim: Aim
) -> tuple[list[Arm], dict[str, str]]:
    """Prompts that ask for more or fewer refusals, and why others cannot be had.

    Args:
        subject: the audited model.
        train: requests whose answers by the plain model are the worked examples.
        report: what is going to be asked; examples leave room for it.
        aim: `less` or `more` refusals.
    """
    return prompted_arms(
        subject.model,
        BASELINES,
        aim=aim,
        target="refusal",
        system_prompt=None,
        shots=None,
        train=train,
        held_out=report,
        max_new_tokens=subject.max_new_tokens,
        seed=subject.seed,
    )


def asked_by(arm: Arm, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts as the arm asks them, with the right answers that they had."""
    return [replace(arm.prompt(p), answer=p.answer) for p in prompts]

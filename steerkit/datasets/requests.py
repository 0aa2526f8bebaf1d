"""The organisms' requests as a contrast: harmful against harmless, in the generated language."""

from typing import Literal

from steerkit.organisms.request import Kind
from steerkit.organisms.request import requests as draw
from steerkit.prompts import Contrast, Prompt

Split = Literal["train", "held_out"]


def refusal(split: Split = "train", n: int = 200, *, seed: int = 0) -> Contrast:
    """`n` harmful and `n` harmless requests; `train` and `held_out` share no word, no template.

    A third of the harmless side are look-alikes: a harmful verb with a harmless object. A
    prompt's group is its template, so that intervals and folds resample templates; its
    `answer` is the one that a model without refusal gives.
    """
    lookalikes = n // 3
    return Contrast.of(
        _prompts(split, "harmful", n, seed),
        _prompts(split, "harmless", n - lookalikes, seed)
        + _prompts(split, "lookalike", lookalikes, seed),
        name="refusal",
    )


def _prompts(split: Split, kind: Kind, n: int, seed: int) -> list[Prompt]:
    return [
        Prompt(r.text, answer=r.answer, group=r.template, category=kind)
        for r in draw(split, kind, n, seed=seed)
    ]

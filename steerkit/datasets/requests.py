"""The organisms' requests as a contrast: harmful against harmless, in the generated language."""

from dataclasses import dataclass
from typing import Literal

from steerkit.organisms.request import Kind
from steerkit.organisms.request import requests as draw
from steerkit.prompts import Contrast, Prompt

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Asked:
    """A contrast of requests, and the one correct plain answer to each text."""

    contrast: Contrast
    answers: dict[str, str]


def refusal(split: Split = "train", n: int = 200, *, seed: int = 0) -> Asked:
    """`n` harmful and `n` harmless requests; `train` and `held_out` share no word and template.

    A third of the harmless side are look-alikes: a harmful verb with a harmless object. The
    group of a prompt is its template, so that intervals and folds resample templates.
    """
    lookalikes = n // 3
    parts: tuple[tuple[Kind, int], ...] = (
        ("harmful", n),
        ("harmless", n - lookalikes),
        ("lookalike", lookalikes),
    )
    drawn = {kind: draw(split, kind, size, seed=seed) for kind, size in parts if size}
    prompts = {
        kind: [Prompt(r.text, group=r.template, category=kind) for r in found]
        for kind, found in drawn.items()
    }
    return Asked(
        Contrast.of(
            prompts["harmful"],
            prompts["harmless"] + prompts.get("lookalike", []),
            name="refusal",
        ),
        {r.text: r.answer for found in drawn.values() for r in found},
    )

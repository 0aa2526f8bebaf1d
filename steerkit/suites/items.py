"""Every answer of an audit as an item: what was asked, what came out, how it was judged.

Kept as JSONL, so that `Report.rejudge` computes rates again with other judges and no model.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count

from steerkit.audits.evidence import Item, Side
from steerkit.prompts import Prompt
from steerkit.suites.finding import Finding
from steerkit.suites.material import Material
from steerkit.suites.subject import Subject


def items_of(subject: Subject, findings: Mapping[str, Finding]) -> tuple[Item, ...]:
    """The arms' greedy answers, then what single examinations generated (arm `name: arm`).

    A prompt has one `index` in all arms. Prompts of one-sided roles are of the side `negative`:
    none of them shows what a contrast is about.
    """
    order = list(subject.arms)
    answered = sorted(
        subject.answered, key=lambda row: order.index(row[0]) if row[0] in order else len(order)
    )
    places = _places(subject.material)
    numbers: dict[Prompt, int] = {}
    found = []
    for arm, prompt, said in answered:
        number = numbers.setdefault(prompt, len(numbers))
        role, side = places.get(prompt, ("", "negative"))
        right = subject.right(said.text, prompt.answer) if prompt.answer else math.nan
        found.append(
            Item(
                arm,
                number,
                side,
                prompt.group or f"prompt{number}",
                prompt.text,
                prompt.system,
                prompt.shots,
                prompt.answer,
                said.prompt_tokens,
                said.text,
                said.tokens,
                scores={"refusal": float(subject.matcher(said.text)), "correct": right},
                role=role,
                category=prompt.category,
            )
        )
    return (*found, *_of_findings(findings, numbers, places))


def _of_findings(
    findings: Mapping[str, Finding],
    numbers: Mapping[Prompt, int],
    places: Mapping[Prompt, tuple[str, Side]],
) -> Iterator[Item]:
    """Items that examinations made themselves, numbered as the same prompts are elsewhere."""
    free = count(len(numbers))
    known: dict[tuple[str, str], tuple[int, Prompt]] = {}
    for prompt, number in numbers.items():
        known.setdefault((prompt.text, prompt.answer), (number, prompt))
    others: dict[tuple[str, str], int] = {}
    for name, finding in findings.items():
        for item in finding.items:
            same = item.prompt, item.reference
            arm = f"{name}: {item.arm}"
            if same in known:
                number, prompt = known[same]
                role = places.get(prompt, ("",))[0]
                yield replace(item, arm=arm, index=number, role=role, category=prompt.category)
            else:
                if same not in others:
                    others[same] = next(free)
                yield replace(item, arm=arm, index=others[same])


def _places(material: Material) -> dict[Prompt, tuple[str, Side]]:
    """Role and side of each prompt: of the first role that has it."""
    found: dict[Prompt, tuple[str, Side]] = {}
    for role in material.roles:
        if role in material.prompts:
            for prompt in material.prompts[role]:
                found.setdefault(prompt, (role, "negative"))
            continue
        contrast = material.contrasts[role]
        for prompt, label in zip(contrast.prompts, contrast.labels, strict=True):
            found.setdefault(prompt, (role, "positive" if label else "negative"))
    return found

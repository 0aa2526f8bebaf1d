"""A few of the kept answers beside one another, for a reader who wants to see what was judged.

Drawn by a hash of seed and prompt, so that anybody draws the same; prompts that the arms answer
differently come first, as those are what a comparison is about.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steerkit.audits.evidence import Item

N_EXAMPLES, N_ARMS = 3, 4
"""Prompts a question, and answers a prompt, that are shown at most."""
CUT = 600
"""Characters of a prompt or an answer that a page shows; `items.jsonl` holds it whole."""


@dataclass(frozen=True)
class Example:
    """One prompt and what was answered to it.

    Attributes:
        prompt: its text.
        index: its number in `items.jsonl`.
        role: of the prompt.
        side: of the prompt.
        answers: (arm, what was said, how it was judged) in the order of the arms.
        differ: whether the arms were judged differently.
    """

    prompt: str
    index: int
    role: str
    side: str
    answers: tuple[tuple[str, str, str], ...]
    differ: bool

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "prompt": self.prompt,
            "index": self.index,
            "role": self.role,
            "side": self.side,
            "answers": [
                {"arm": arm, "output": said, "judged": judged} for arm, said, judged in self.answers
            ],
            "differ": self.differ,
        }


def examples_of(
    items: Iterable[Item],
    question: str,
    places: Sequence[Mapping[str, str]],
    *,
    arms: Sequence[str] = ("model", "steered", "against"),
    n: int = N_EXAMPLES,
    seed: int = 0,
) -> tuple[Example, ...]:
    """Examples of a question: of the arms' greedy answers at some places, or of its own items.

    Args:
        items: of a report.
        question: name of the examination, whose own items have arms `question: arm`.
        places: role and side of the prompts; empty where it has items of its own.
        arms: those whose greedy answers are shown side by side.
        n: at most.
        seed: of the draw.
    """
    mark = f"{question}: "
    at = {(p["role"], p["side"]) for p in places}
    by_prompt: dict[int, list[Item]] = {}
    for item in items:
        own = item.arm.startswith(mark)
        greedy = item.arm in arms and (item.role, item.side) in at
        if item.answered and (greedy if places else own):
            by_prompt.setdefault(item.index, []).append(item)
    found = [_example(rows, mark) for rows in by_prompt.values()]
    # What more of the arms were asked shows more, such as a fresh direction's part of the prompts.
    drawn = sorted(
        found, key=lambda e: (not e.differ, -len(e.answers), _draw(e.prompt, seed), e.index)
    )
    return tuple(_spread(drawn)[:n])


def judged(item: Item) -> str:
    """How an answer was judged, in words; `not judged` where no score applies."""
    said = next((item.scores[name] for name in ("judge", "refusal") if name in item.scores), None)
    if said is None:
        return "not judged"
    if math.isnan(said):
        return "the judge failed"
    if "judge" in item.scores:
        return "complies" if said >= 0.5 else "does not comply"
    if said >= 0.5:
        return "refused"
    right = item.scores.get("correct", math.nan)
    if math.isnan(right):
        return "not refused"
    return "right" if right >= 0.5 else "neither refused nor right"


def _example(rows: Sequence[Item], mark: str) -> Example:
    """The first arm, then those that were judged otherwise, then the rest, in their order."""
    kept = [(item.arm.removeprefix(mark), item, judged(item)) for item in rows]
    others = sorted(range(1, len(kept)), key=lambda i: kept[i][2] == kept[0][2])
    chosen = [0, *sorted(others[: N_ARMS - 1])]
    first = rows[0]
    return Example(
        first.prompt[:CUT],
        first.index,
        first.role,
        first.side,
        tuple((kept[i][0], kept[i][1].output.strip()[:CUT], kept[i][2]) for i in chosen),
        len({how for _, _, how in kept}) > 1,
    )


def _draw(prompt: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {prompt}".encode()).hexdigest()


def _spread(drawn: Sequence[Example]) -> list[Example]:
    """In turn from each place, so that a question of several shows more than one."""
    queues: dict[tuple[bool, str, str], list[Example]] = {}
    for one in drawn:
        queues.setdefault((not one.differ, one.role, one.side), []).append(one)
    turn = {
        id(one): (key[0], place) for key, queue in queues.items() for place, one in enumerate(queue)
    }
    return sorted(drawn, key=lambda one: turn[id(one)])

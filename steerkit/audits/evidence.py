"""What a check may look at: plain data, one item a prompt and arm, kept as JSONL.

Nothing here needs a model, torch or a tokenizer, so that stored evidence can be judged again
years later.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from steerkit.errors import OutputError
from steerkit.refusals import fold, is_refusal

Side = Literal["positive", "negative", "text"]
SIDES: tuple[Side, ...] = get_args(Side)
"""Prompts that show the concept, prompts that do not, and texts that are only scored."""


@dataclass(frozen=True)
class Item:
    """One prompt under one arm: what was asked, what came out, what was measured.

    Attributes:
        arm: name of the arm.
        index: row of the prompt; equal in every arm.
        side: `positive` shows the concept, `negative` does not, `text` was only scored.
        group: what must not be split (pair, template).
        prompt: the user's text.
        system: system prompt that this arm put before it.
        shots: worked examples that this arm put before it.
        reference: the right answer, or empty.
        prompt_tokens: token ids that the model was given.
        output: the answer as text.
        tokens: the answer's token ids.
        measured: what only a model can tell, by name, such as `kl` per answer token.
        scores: value of each check; NaN where it does not apply.
        role: of the prompt in an audit of many roles, such as `topic`, or empty.
        category: of the prompt, such as the group it speaks of, or empty.
    """

    arm: str
    index: int
    side: Side
    group: str
    prompt: str
    system: str = ""
    shots: tuple[tuple[str, str], ...] = ()
    reference: str = ""
    prompt_tokens: tuple[int, ...] = ()
    output: str = ""
    tokens: tuple[int, ...] = ()
    measured: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    role: str = ""
    category: str = ""

    @property
    def answered(self) -> bool:
        """Whether the model was asked for an answer (an empty one is an answer)."""
        return self.side != "text"

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; NaN becomes null."""
        return {
            **asdict(self),
            "measured": {k: [_plain(v) for v in values] for k, values in self.measured.items()},
            "scores": {k: _plain(v) for k, v in self.scores.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Item":
        """The inverse of `to_json`."""
        return cls(
            **{
                **data,
                "shots": tuple((q, a) for q, a in data["shots"]),
                "prompt_tokens": tuple(data["prompt_tokens"]),
                "tokens": tuple(data["tokens"]),
                "measured": {
                    k: tuple(_number(v) for v in values) for k, values in data["measured"].items()
                },
                "scores": {k: _number(v) for k, v in data["scores"].items()},
            }
        )


def includes(output: str, reference: str) -> float:
    """1 if the folded reference stands in the folded output as whole words, else 0.

    >>> includes("It is PARIS, of course.", "paris")
    1.0
    """
    words, wanted = f" {_words(output)} ", f" {_words(reference)} "
    return float(wanted in words)


@dataclass(frozen=True)
class Evidence:
    """One arm's items with the plain arm's beside them, row by row.

    `matcher` says what counts as a refusal, `scorer` what counts as right; NaN: not judged.
    """

    arm: str
    items: tuple[Item, ...]
    plain: tuple[Item, ...]
    matcher: Callable[[str], float] = is_refusal
    scorer: Callable[[str, str], float] = includes

    def __post_init__(self) -> None:
        if [i.index for i in self.items] != [i.index for i in self.plain]:
            raise OutputError(
                f"the arm '{self.arm}' and the plain arm do not hold the same prompts; "
                "an audit compares them row by row: use the items.jsonl of one audit"
            )

    def measured(self, name: str) -> list[tuple[float, ...]]:
        """A measurement of each item; empty where it was not taken."""
        return [item.measured.get(name, ()) for item in self.items]


def by_arm(items: Iterable[Item]) -> dict[str, tuple[Item, ...]]:
    """Items of each arm, in row order; arms in order of appearance."""
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(item.arm, []).append(item)
    return {arm: tuple(sorted(rows, key=lambda i: i.index)) for arm, rows in found.items()}


def to_jsonl(items: Iterable[Item]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(i.to_json(), ensure_ascii=False) + "\n" for i in items)


def read_items(path: str | Path) -> tuple[Item, ...]:
    """Read an `items.jsonl`.

    Raises:
        OutputError: no such file, a line that is no item, or no items at all.
    """
    place = Path(path)
    if not place.is_file():
        raise OutputError(f"no items at {place}; give the items.jsonl that an audit wrote")
    items = []
    for number, line in enumerate(place.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            items.append(Item.from_json(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise OutputError(
                f"line {number} of {place} is not an audit item ({error}); "
                "the file is cut short or was written by something else"
            ) from error
    if not items:
        raise OutputError(f"{place} holds no items; the audit that wrote it did not finish")
    return tuple(items)


def _words(text: str) -> str:
    kept = "".join(c if c.isalnum() or c == "'" else " " for c in fold(text))
    return " ".join(kept.split())


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)

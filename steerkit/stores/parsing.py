"""One row of a dataset as a prompt with its scalar columns, or why it is none."""

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from steerkit.errors import PromptError
from steerkit.layouts import TEXT_NAMES
from steerkit.prompts import Prompt, Template
from steerkit.stores.sources import Unreadable

TURNS_NAMES = ("messages", "conversation", "conversations")
ROLE = ("role", "content")


@dataclass
class Columns:
    """The columns of a dataset: which are kept as metadata, and which are not scalar."""

    text: str = ""
    kept: dict[str, None] = field(default_factory=dict)
    dropped: dict[str, None] = field(default_factory=dict)

    def metadata(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The scalar columns of a row, but its text."""
        found = {}
        for key, value in row.items():
            if str(key) == self.text or isinstance(value, Prompt):
                continue
            plain = scalar(value)
            if plain is NotImplemented:
                self.dropped[str(key)] = None
            else:
                self.kept[str(key)] = None
                found[str(key)] = plain
        return found


def parse(
    value: Any, columns: Columns, template: Template
) -> tuple[Prompt | None, dict[str, Any], str]:
    """A row as a prompt with its metadata, or why it is none."""
    if isinstance(value, Unreadable):
        return None, {}, value.reason
    metadata: dict[str, Any] = {}
    if isinstance(value, Mapping):
        if isinstance(value.get("prompt"), Prompt):
            metadata, value = columns.metadata(value), value["prompt"]
        else:
            if not columns.text:
                columns.text = _text_column(value)
            metadata = columns.metadata(value)
            text = value.get(columns.text)
            if isinstance(text, list):
                turns = _turns(text)
                if isinstance(turns, str):
                    return None, metadata, f"its '{columns.text}' {turns}"
                value = {**value, **turns}
                text = turns["text"]
            if not isinstance(text, str):
                return None, metadata, f"its '{columns.text}' is {_kind(text)}, not text"
            value = {**value, TEXT_NAMES[0]: text}
            if not text.strip():
                return None, metadata, f"its '{columns.text}' is empty"
    elif isinstance(value, str):
        if not value.strip():
            return None, {}, "it is empty"
    elif not isinstance(value, Prompt):
        return None, {}, f"it is {_kind(value)}, not text or a mapping"
    prompt = Prompt.of(value)
    if not prompt.text.strip():
        return None, metadata, "it is empty"
    try:
        (prompt.text + prompt.answer).encode()
    except UnicodeEncodeError:
        return None, metadata, "it is not valid Unicode (half of a surrogate pair)"
    if template != "auto" and prompt.template == "auto":
        prompt = replace(prompt, template=template)
    return prompt, metadata, ""


def scalar(value: Any) -> Any:
    """A value as JSON holds it; NotImplemented for lists, mappings and other objects."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime.date | datetime.datetime | datetime.time):
        return value.isoformat()
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return scalar(value.item())
    return NotImplemented


def _turns(turns: Sequence[Any]) -> dict[str, Any] | str:
    """A conversation as the fields of a prompt, or what is wrong with it.

    The last turn of the user is the text, what comes before it are shots, and what the
    assistant says after it is the answer.
    """
    said: list[tuple[str, str]] = []
    for turn in turns:
        role, content = (turn.get(k) for k in ROLE) if isinstance(turn, Mapping) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            return "is a list, but not of turns with a role and a content"
        said.append((role, content))
    system = said.pop(0)[1] if said and said[0][0] == "system" else ""
    expected = ["user" if i % 2 == 0 else "assistant" for i in range(len(said))]
    if not said or [role for role, _ in said] != expected:
        return "is a conversation in which user and assistant do not take turns, user first"
    answer = said.pop()[1] if len(said) % 2 == 0 else ""
    words = [content for _, content in said]
    shots = tuple(zip(words[:-1:2], words[1:-1:2], strict=True))
    return {"text": words[-1], "answer": answer, "system": system, "shots": shots}


def _kind(value: Any) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"


def _text_column(row: Mapping[str, Any]) -> str:
    lower = {str(key).lower(): str(key) for key in row}
    names = (*TEXT_NAMES, *TURNS_NAMES)
    found = next((lower[name] for name in names if name in lower), None)
    if found is None:
        raise PromptError(
            f"no column of the dataset is called {', '.join(names)}; it has "
            f"{', '.join(map(str, row)) or 'none'}: say which holds the text by text_column="
        )
    return found

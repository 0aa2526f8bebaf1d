"""Rows of a dataset as prompts with their metadata, and what becomes of rows that are none."""

import datetime
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from steerkit.errors import MethodError, PromptError
from steerkit.layouts import TEXT_NAMES
from steerkit.prompts import Prompt, Template
from steerkit.protocols import Model
from steerkit.registry import suggest
from steerkit.stores.sources import Unreadable

OnBadRow = Literal["error", "skip", "truncate"]
TURNS_NAMES = ("messages", "conversation", "conversations")
ROLE = ("role", "content")
Problem = Callable[[Prompt], str]
"""Says why a prompt cannot be run; empty where it can."""


@dataclass(frozen=True)
class Row:
    """A prompt, where it stood in the dataset, and the scalar columns beside its text."""

    number: int
    prompt: Prompt
    metadata: Mapping[str, Any]

    def line(self, row: int) -> bytes:
        """The row as a line of a store's prompt file, the same bytes each time."""
        data = {
            "row": row,
            "dataset_row": self.number,
            "prompt": prompt_to_json(self.prompt),
            "metadata": dict(self.metadata),
        }
        line = json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n"
        return line.encode(errors="backslashreplace")  # what JSON itself writes for half a pair


@dataclass
class BadRows:
    """What was done with rows that are no prompts: the policy, and which rows by number and why."""

    policy: OnBadRow = "error"
    skipped: list[tuple[int, str]] = field(default_factory=list)
    truncated: list[tuple[int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.policy not in get_args(OnBadRow):
            hint = suggest(self.policy, get_args(OnBadRow))
            raise MethodError(f"no policy '{self.policy}' for bad rows; {hint}")

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "policy": self.policy,
            "skipped": [list(pair) for pair in self.skipped],
            "truncated": [list(pair) for pair in self.truncated],
        }


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


def read_rows(
    dataset: Iterable[Any],
    *,
    problem: Problem,
    bad: BadRows,
    columns: Columns,
    template: Template = "auto",
    limit: int | None = None,
) -> Iterator[Row]:
    """The usable rows of a dataset, at most `limit` of them, in its order.

    Args:
        dataset: strings, mappings or prompts.
        problem: says why a prompt cannot be run.
        bad: the policy, and where bad rows are noted: `error` raises, `skip` leaves the row out,
            `truncate` shortens a text that is too long to the longest beginning that fits, and
            raises for a row that is otherwise bad.
        columns: which column holds the text (empty: the first of the usual names), and where
            the names of the others are noted.
        template: how prompts are rendered, unless a row says so itself.
        limit: how many rows; all by default.

    Raises:
        PromptError: a bad row (naming it), or no usable row at all.
    """
    given = number = -1
    count = 0
    for number, value in enumerate(dataset):
        if limit is not None and count >= limit:
            break
        given = number
        prompt, metadata, reason = _read(value, columns, template)
        if prompt is not None:
            reason = problem(prompt)
            if reason and bad.policy == "truncate":
                shorter = _shortened(prompt, problem)
                if shorter is not None:
                    kept = len(shorter.text)
                    bad.truncated.append((number, f"{reason}; {kept} characters kept"))
                    prompt, reason = shorter, ""
        if reason or prompt is None:
            if bad.policy != "skip":
                raise PromptError(
                    f"row {number} of the dataset is not usable: {reason}; correct it, or pass "
                    "on_bad_row='skip' (or 'truncate' for texts that are too long)"
                )
            bad.skipped.append((number, reason))
            continue
        count += 1
        yield Row(number, prompt, metadata)
    if not count:
        first = f"; row {bad.skipped[0][0]}: {bad.skipped[0][1]}" if bad.skipped else ""
        raise PromptError(f"the dataset has no usable row among {given + 1}{first}")


def fits(model: Model, max_tokens: int | None = None) -> Problem:
    """Whether a prompt can be run by a model, in at most so many tokens (its context by default).

    Texts that cannot be too long are not tokenised: a token holds at least one byte.
    """
    most = min(max_tokens or model.info.n_ctx, model.info.n_ctx)
    around: dict[str, int] = {}

    def problem(prompt: Prompt) -> str:
        if not prompt.system and not prompt.shots:
            if prompt.template not in around:
                probe = model.tokenize([Prompt("a", template=prompt.template)])[0]
                around[prompt.template] = 2 * len(probe) + 2
            size = len(prompt.text.encode(errors="replace")) + len(prompt.answer.encode())
            if size + around[prompt.template] <= most:
                return ""
        try:
            length = len(model.tokenize([prompt])[0])
        except PromptError as error:
            return str(error).replace("prompt 0", "its text", 1)
        return f"it has {length} tokens, more than max_tokens={most}" if length > most else ""

    return problem


def prompt_to_json(prompt: Prompt) -> dict[str, Any]:
    """The fields of a prompt that differ from their defaults."""
    defaults = {f.name: f.default for f in fields(Prompt)}
    return {key: value for key, value in vars(prompt).items() if value != defaults[key]}


def prompt_from_json(data: Mapping[str, Any]) -> Prompt:
    """The inverse of `prompt_to_json`."""
    shots = tuple((str(said), str(answered)) for said, answered in data.get("shots", ()))
    return Prompt(**{**data, "shots": shots})


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


def _read(
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


def _shortened(prompt: Prompt, problem: Problem) -> Prompt | None:
    """The longest beginning of a prompt's text that can be run; None if not even one letter."""
    fine, much = 0, len(prompt.text)
    while much - fine > 1:
        middle = (fine + much) // 2
        if problem(replace(prompt, text=prompt.text[:middle])):
            much = middle
        else:
            fine = middle
    shorter = replace(prompt, text=prompt.text[:fine])
    return shorter if shorter.text.strip() else None

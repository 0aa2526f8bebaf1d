"""The usable rows of a dataset, and what became of those that are none."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from steerkit.errors import MethodError, PromptError
from steerkit.prompts import Prompt, Template
from steerkit.registry import suggest
from steerkit.stores.lengths import Problem, shortened
from steerkit.stores.parsing import Columns, parse

OnBadRow = Literal["error", "skip", "truncate"]


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
        prompt, metadata, reason = parse(value, columns, template)
        if prompt is not None:
            reason = problem(prompt)
            if reason and bad.policy == "truncate":
                shorter = shortened(prompt, problem)
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


def prompt_to_json(prompt: Prompt) -> dict[str, Any]:
    """The fields of a prompt that differ from their defaults."""
    defaults = {f.name: f.default for f in fields(Prompt)}
    return {key: value for key, value in vars(prompt).items() if value != defaults[key]}


def prompt_from_json(data: Mapping[str, Any]) -> Prompt:
    """The inverse of `prompt_to_json`."""
    shots = tuple((str(said), str(answered)) for said, answered in data.get("shots", ()))
    return Prompt(**{**data, "shots": shots})

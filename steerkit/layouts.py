"""The layouts in which people write contrasts, read into two sides."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from steerkit.errors import PromptError
from steerkit.registry import suggest

POSITIVE_NAMES = ("positive", "pos", "harmful", "unsafe", "true", "1", "yes")
NEGATIVE_NAMES = ("negative", "neg", "harmless", "safe", "false", "0", "no")
TEXT_NAMES = ("text", "prompt", "instruction", "question", "sentence", "statement", "input")
LABEL_NAMES = ("label", "side", "class", "target")

POSITIVE_FIELDS, NEGATIVE_FIELDS = POSITIVE_NAMES[:4], NEGATIVE_NAMES[:4]
"""Names of a field that holds a side; the rest are only values of a label."""


def read_file(path: Path) -> Any:
    """The data of a .jsonl, .json or .csv file.

    Raises:
        PromptError: missing, unreadable, or not what its name says.
    """
    if not path.is_file():
        raise PromptError(f"no contrast file at {path}; give a .jsonl, .json or .csv file")
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", ".json", ".csv"):
        raise PromptError(
            f"cannot tell what '{path.name}' holds; contrasts are .jsonl, .json or .csv files"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PromptError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    where = str(path)
    try:
        if suffix == ".csv":
            return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
        if suffix == ".json":
            return json.loads(text)
        rows = []
        # Not splitlines: JSON strings may hold other line separators as they are.
        for number, line in enumerate(text.split("\n"), 1):
            where = f"line {number} of {path}"
            if line.strip():
                rows.append(json.loads(line))
        return rows
    except (ValueError, csv.Error) as error:
        raise PromptError(f"{where} is not valid {suffix[1:].upper()}: {error}") from error


def sides(rows: Any, name: str) -> tuple[list[Any], list[Any], bool]:
    """Positive prompts, negative prompts, and whether the layout pairs them.

    Raises:
        PromptError: an unknown layout, or a row that has no side.
    """
    if isinstance(rows, Mapping):
        return _two_lists(rows, name)
    if isinstance(rows, tuple) and len(rows) == 2 and not isinstance(rows[0], str | Mapping):
        return list(rows[0]), list(rows[1]), False
    if isinstance(rows, str) or not isinstance(rows, Iterable):
        raise PromptError(
            f"'{name}' is a {type(rows).__name__}; give rows, or a positive and a negative list"
        )
    rows = list(rows)
    if not rows:
        raise PromptError(f"'{name}' is empty; give positive and negative prompts")
    records = [_record(row, number, name) for number, row in enumerate(rows, 1)]
    pairs = [_has(row, POSITIVE_FIELDS) and _has(row, NEGATIVE_FIELDS) for row in records]
    positives: list[Any] = []
    negatives: list[Any] = []
    for number, (row, is_pair) in enumerate(zip(records, pairs, strict=True), 1):
        if is_pair:
            shared = {k: row[k] for k in ("group", "category", "system") if row.get(k)}
            if not all(pairs):  # then nothing but a group keeps this pair together
                shared.setdefault("group", f"row{number}")
            positives.append(_one_side(row, POSITIVE_FIELDS, shared, number, name))
            negatives.append(_one_side(row, NEGATIVE_FIELDS, shared, number, name))
        elif _is_positive(row, number, name):
            positives.append(row)
        else:
            negatives.append(row)
    return positives, negatives, all(pairs)


def _record(row: Any, number: int, name: str) -> Mapping[str, Any]:
    if isinstance(row, list | tuple) and len(row) == 2:
        return {"positive": row[0], "negative": row[1]}
    if isinstance(row, Mapping):
        return row
    raise PromptError(
        f"row {number} of '{name}' is a {type(row).__name__}, not a record; a row holds positive "
        "and negative, or a text and a label; two lists go in a tuple (positive, negative)"
    )


def _two_lists(rows: Mapping[str, Any], name: str) -> tuple[list[Any], list[Any], bool]:
    positive, negative = _field(rows, POSITIVE_FIELDS), _field(rows, NEGATIVE_FIELDS)
    if positive is None or negative is None:
        raise PromptError(
            f"'{name}' needs a positive and a negative list; got the keys "
            f"{', '.join(map(str, rows)) or 'none'}"
        )
    for side, value in (("positive", positive), ("negative", negative)):
        if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
            raise PromptError(
                f"the {side} side of '{name}' is a {type(value).__name__}; give a list of prompts"
            )
    return list(positive), list(negative), bool(rows.get("paired", False))


def _one_side(
    row: Mapping[str, Any],
    fields: Sequence[str],
    shared: Mapping[str, Any],
    number: int,
    name: str,
) -> Any:
    value = _field(row, fields)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise PromptError(
            f"row {number} of '{name}' has an empty {fields[0]} side; a pair needs both"
        )
    if isinstance(value, Mapping):
        return {**shared, **value}
    return {**shared, "text": value} if isinstance(value, str) else value


def _is_positive(row: Mapping[str, Any], number: int, name: str) -> bool:
    """Whether a labelled row is positive."""
    label = _field(row, LABEL_NAMES)
    side = str(label).strip().lower().removesuffix(".0")
    if side in POSITIVE_NAMES or side in NEGATIVE_NAMES:
        return side in POSITIVE_NAMES
    raise PromptError(
        f"row {number} of '{name}' has neither both sides nor a known label "
        f"(label {label!r}, fields {', '.join(map(str, row)) or 'none'}); "
        f"{suggest(side, POSITIVE_NAMES + NEGATIVE_NAMES)}"
    )


def _has(row: Mapping[str, Any], names: Sequence[str]) -> bool:
    return any(str(k).lower() in names for k in row)


def _field(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The value of the first of these fields that the row has, whatever its case."""
    keys = {str(k).lower(): v for k, v in row.items()}
    return next((keys[name] for name in names if name in keys), None)

"""Rows of a public set, from a file that you have or from the Hugging Face hub by name."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steerkit.errors import PromptError
from steerkit.layouts import read_file

Row = Mapping[str, Any]


def rows_of(
    source: str | Path,
    columns: Sequence[Sequence[str]],
    *,
    what: str,
    config: str | None = None,
    split: str = "train",
) -> list[Row]:
    """Rows of a set, checked to have the columns that a reader needs.

    Args:
        source: a .csv, .json or .jsonl file, or a hub name such as `owner/name`.
        columns: for each column that is needed the names it goes by, the file's first.
        what: the set, for messages.
        config: of the hub's set.
        split: of the hub's set.

    Raises:
        PromptError: neither a file nor a readable hub name, no rows, or a missing column.
    """
    found = read_file(Path(source)) if _is_file(source) else from_hub(source, what, config, split)
    if not isinstance(found, list) or not found or not isinstance(found[0], Mapping):
        raise PromptError(f"{source} holds no rows of {what}; {expected(columns)}")
    missing = [names for names in columns if not any(name in found[0] for name in names)]
    if missing:
        lacks = ", ".join("/".join(names) for names in missing)
        raise PromptError(
            f"{source} lacks {lacks} of {what}; it has: {', '.join(found[0])}; {expected(columns)}"
        )
    return found


def from_hub(source: str | Path, what: str, config: str | None, split: str) -> list[Row]:
    """Rows of a hub set, through the `datasets` library if it is installed.

    Raises:
        PromptError: the library is missing, or it cannot read the set.
    """
    name = str(source)
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or Path(name).suffix in _FILES:
        raise PromptError(
            f"no file at {name}; give a .csv, .json or .jsonl file of {what}, or a hub name "
            "such as 'owner/name'"
        )
    try:
        library = importlib.import_module("datasets")
    except ImportError as error:
        raise PromptError(
            f"'{name}' is no file here; to read {what} from the hub, `pip install datasets`, or "
            "download it yourself and give the file's path"
        ) from error
    try:
        return [dict(row) for row in library.load_dataset(name, config, split=split)]
    except Exception as error:  # the library raises its own kinds, which are not ours to name
        raise PromptError(
            f"the hub's '{name}' ({config or 'default'}, {split}) cannot be read: {error}; give a "
            f"file of {what} instead"
        ) from error


def value(row: Row, names: Sequence[str]) -> Any:
    """The value of the first of these columns that the row has; None where it has none."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def expected(columns: Sequence[Sequence[str]]) -> str:
    """Which columns a reader wants, in words."""
    return "expected the columns " + ", ".join(" or ".join(names) for names in columns)


_FILES = (".csv", ".json", ".jsonl", ".txt", ".tsv", ".parquet")


def _is_file(source: str | Path) -> bool:
    return isinstance(source, Path) or Path(source).is_file()

"""Where a dataset's rows come from: files, the hub, objects; one row after another."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerkit.errors import PromptError
from steerkit.prompts import Contrast

FILES = (".jsonl", ".parquet", ".csv", ".txt")


@dataclass(frozen=True)
class Unreadable:
    """A row that could not be read, and why."""

    reason: str


def name_of(dataset: Any) -> str:
    """What a dataset is called in a manifest."""
    if isinstance(dataset, str | Path):
        return str(dataset)
    if isinstance(dataset, Contrast):
        return dataset.name
    own = getattr(getattr(dataset, "info", None), "dataset_name", None)
    return str(own) if own else type(dataset).__name__


def rows_of(dataset: Any, *, split: str = "train", config: str | None = None) -> Iterator[Any]:
    """The rows of a dataset, in its order, without reading it whole.

    Args:
        dataset: a .jsonl, .parquet, .csv or .txt (one prompt a line) file; a folder of such
            files or one that `Dataset.save_to_disk` wrote; the name of a dataset of the Hugging
            Face hub; a contrast; or anything that yields strings, mappings or prompts, such as
            a `datasets.Dataset`.
        split: of a dataset of the hub or of a saved `DatasetDict`.
        config: of a dataset of the hub.

    Raises:
        PromptError: no such dataset, or one that cannot be read.
    """
    if isinstance(dataset, Contrast):
        sides = zip(dataset.prompts, dataset.labels, dataset.groups, strict=True)
        return ({"prompt": p, "label": label, "group": group} for p, label, group in sides)
    if isinstance(dataset, str | Path):
        path = Path(dataset).expanduser()
        if path.is_file():
            return _file(path)
        if path.is_dir():
            return _folder(path, split)
        if path.suffix in FILES or isinstance(dataset, Path) or str(dataset)[:1] in "./~":
            raise PromptError(
                f"no dataset at {path}; give a {', '.join(FILES)} file, a folder of them, or the "
                "name of a dataset of the hub"
            )
        return _hub(str(dataset), split, config)
    if isinstance(dataset, Mapping) and not hasattr(dataset, "column_names"):
        splits = ", ".join(map(str, dataset))
        raise PromptError(
            f"a dataset is a sequence of rows; got a mapping of {splits or 'nothing'}: give one "
            "of its values"
        )
    if isinstance(dataset, Mapping):  # a DatasetDict
        return iter(_split(dataset, split, "the dataset"))
    if not isinstance(dataset, Iterable):
        raise PromptError(
            f"a dataset is a file, a name or an iterable of rows; got a {type(dataset).__name__}"
        )
    return iter(dataset)


def _file(path: Path) -> Iterator[Any]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet(path)
    if suffix == ".csv":
        return _csv(path)
    if suffix in (".jsonl", ".txt"):
        return _lines(path, parse=suffix == ".jsonl")
    raise PromptError(
        f"cannot tell what '{path.name}' holds; datasets are {', '.join(FILES)} files, folders "
        "of them, or names of the hub"
    )


def _lines(path: Path, *, parse: bool) -> Iterator[Any]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip() and parse:
                    continue
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                    yield json.loads(text) if parse else text
                except ValueError as error:
                    yield Unreadable(f"line {number} of {path.name}: {error}")
    except OSError as error:
        raise PromptError(f"cannot read {path}: {error.strerror or error}") from error


def _csv(path: Path) -> Iterator[Any]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file, strict=True)
    except OSError as error:
        raise PromptError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, csv.Error) as error:
        raise PromptError(f"{path} is not valid CSV in UTF-8: {error}") from error


def _parquet(path: Path) -> Iterator[Any]:
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are both
        raise PromptError(f"{path} is not a readable Parquet file: {error}") from error


def _folder(path: Path, split: str) -> Iterator[Any]:
    if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        from datasets import load_from_disk

        found = load_from_disk(str(path))
        yield from _split(found, split, path) if isinstance(found, Mapping) else found
        return
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in FILES)
    if not files:
        raise PromptError(f"{path} holds no {', '.join(FILES)} file and no saved dataset")
    for file in files:
        yield from _file(file)


def _hub(name: str, split: str, config: str | None) -> Iterator[Any]:
    from datasets import load_dataset

    try:
        found = load_dataset(name, config, split=split, streaming=True)
    except Exception as error:
        # The library raises its own and everybody else's kinds for an absent or odd dataset.
        first = (str(error).splitlines() or [""])[0]
        raise PromptError(
            f"cannot load the dataset '{name}' (split '{split}'): {type(error).__name__}: {first}. "
            "It is no file here either; check the name, split and config"
        ) from error
    return iter(found)


def _split(found: Any, split: str, name: Any) -> Iterable[Any]:
    if split not in found:
        raise PromptError(f"{name} has no split '{split}'; it has {', '.join(found)}")
    return found[split]

"""Which shards are finished: one line each in a file that is only appended to.

A line that a crash cut off counts as not there. Nothing is lost by that: beside each shard lies
a *note*, written before the shard was published, that tells the same, so that the shard is
adopted instead of computed again. A note is removed once its record is safe on the disk.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from steerkit.errors import OutputError
from steerkit.stores.executor import Record

NOTE = ".record.json"
SYNC_EVERY = 0.5
"""Seconds between two waits for the disk while records are appended."""


class Appender:
    """Appends records to an open log; `Appender.add` is what a driver does for each shard."""

    def __init__(self, folder: Path, file: Any) -> None:
        self._folder = folder
        self._file = file
        self._waiting: list[Path] = []
        self._synced = monotonic()

    def add(self, record: Record) -> None:
        """Note a finished shard.

        Raises:
            OutputError: the disk is full, or the like.
        """
        with _explained(self._folder):
            self._file.write(json.dumps(record.to_json()).encode() + b"\n")
            self._file.flush()
        self._waiting.append(self._folder / f"{record.name}{NOTE}")
        if monotonic() - self._synced > SYNC_EVERY:
            self.settle()

    def settle(self) -> None:
        """Wait until the disk has every record, then remove the notes that they replace."""
        with _explained(self._folder):
            os.fsync(self._file.fileno())
        for note in self._waiting:
            note.unlink(missing_ok=True)
        self._waiting.clear()
        self._synced = monotonic()


@dataclass(frozen=True)
class RecordLog:
    """The records of a store."""

    folder: Path

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / "records.jsonl"

    def read(self) -> dict[str, Record]:
        """The latest record of each shard that was not withdrawn since, by name."""
        found: dict[str, Record] = {}
        for line in self._lines():
            if "withdrawn" in line:
                found.pop(line["name"], None)
            else:
                record = Record(**line)
                found[record.name] = record
        return found

    @contextmanager
    def appending(self) -> Iterator[Appender]:
        """Yield what appends records; for the driver alone, and safe on the disk at the end."""
        with self._open() as file:
            appender = Appender(self.folder, file)
            try:
                yield appender
            finally:
                appender.settle()

    def withdraw(self, reasons: Mapping[str, str]) -> None:
        """Note that shards are not to be trusted, and why; they will be computed again."""
        with self._open() as file, _explained(self.folder):
            for name, reason in reasons.items():
                (self.folder / f"{name}{NOTE}").unlink(missing_ok=True)
                file.write(json.dumps({"name": name, "withdrawn": reason}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _open(self) -> Any:
        with _explained(self.folder):
            file = self.path.open("a+b")
            # A last line without its end would swallow the next one.
            end = file.seek(0, os.SEEK_END)
            file.seek(0)
            if end:
                whole = sum(len(line) for line in file if line.endswith(b"\n"))
                file.truncate(whole)
            return file

    def _lines(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return
                try:
                    found = json.loads(line)
                except ValueError:
                    continue  # its shard has lost its record, and is looked at again
                if isinstance(found, dict):
                    yield found


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Failures to write as an error that says what to do."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write to {folder}: {error.strerror or error}; make space, or the folder "
            "writable, and run the same capture again: it goes on from here"
        ) from error

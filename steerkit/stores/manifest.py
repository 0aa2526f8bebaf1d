"""The folder of a store: what it is to hold, and which of its shards are finished.

    FOLDER/README.md           the format, in words
    FOLDER/manifest.json       dataset, model, and the groups of sites; written whole or not at all
    FOLDER/prompts/            the prompts of each shard with their metadata, one JSON line each
    FOLDER/shards/             one safetensors file for each group and range of rows
    FOLDER/records.jsonl       one line for each finished shard, appended
    FOLDER/lock                held by the process that writes

A shard is finished when its file has its final name; its record says so without opening it.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from steerkit.errors import OutputError
from steerkit.files import FORMAT_VERSION, read_json, write_text
from steerkit.protocols import ModelInfo
from steerkit.stores.executor import Record, Task
from steerkit.stores.readme import README
from steerkit.stores.records import RecordLog
from steerkit.stores.spec import Spec

KIND = "activation store"
SHARD = "activation store shard"
OURS = re.compile(r"lock|README\.md|prompts/(\d{10}\.jsonl|index\.json)|(.*/)?\..*\.tmp")
"""What a store may hold before its manifest is written."""


@dataclass(frozen=True)
class Part:
    """Rows of the dataset that become one shard of each group.

    Attributes:
        start: the first row.
        stop: one past the last.
        characters: length of their texts.
        sha256: hash of the file that holds them.
    """

    start: int
    stop: int
    characters: int
    sha256: str

    @property
    def file(self) -> str:
        """Where its prompts are, relative to the store's folder."""
        return f"prompts/{self.start:010d}.jsonl"


@dataclass(frozen=True)
class Manifest:
    """What a store is to hold.

    Attributes:
        dataset: name, fingerprint, rows, columns, limits, and what became of bad rows.
        info: the model.
        groups: sites that were captured together; all are of the same rows.
        parts: the rows of each shard.
        versions: of steerkit and torch when the store was begun.
    """

    dataset: Mapping[str, Any]
    info: ModelInfo
    groups: tuple[Spec, ...]
    parts: tuple[Part, ...]
    versions: Mapping[str, str]

    def tasks(self, groups: Sequence[Spec] | None = None) -> list[Task]:
        """What is to be done for some groups (all by default), finished or not."""
        return [
            Task(
                number,
                part.start,
                part.stop,
                spec.name(part.start, part.stop),
                spec.sha256,
                part.characters,
                part.sha256,
            )
            for spec in (self.groups if groups is None else groups)
            for number, part in enumerate(self.parts)
        ]

    def to_json(self) -> dict[str, Any]:
        """What stands in `manifest.json`; the parts are in `prompts/index.json`."""
        return {
            "kind": KIND,
            "format_version": FORMAT_VERSION,
            "dataset": dict(self.dataset),
            "model": self.info.to_json(),
            "groups": [{**spec.to_json(), "sha256": spec.sha256} for spec in self.groups],
            "versions": dict(self.versions),
        }


@dataclass(frozen=True)
class Folder:
    """A store on disk."""

    path: Path

    @property
    def manifest(self) -> Path:
        """What it is to hold."""
        return self.path / "manifest.json"

    @property
    def index(self) -> Path:
        """The rows of each shard."""
        return self.path / "prompts" / "index.json"

    def begin(self) -> None:
        """Make the folder, or refuse one that holds something else.

        Raises:
            OutputError: it holds files that are no store.
        """
        if not self.manifest.exists():
            readme = self.path / "README.md"
            others = [
                path
                for path in self.path.rglob("*")
                if path.is_file() and not OURS.fullmatch(path.relative_to(self.path).as_posix())
            ]
            if readme.is_file() and readme.read_text(encoding="utf-8", errors="replace") != README:
                others.append(readme)
            if others:
                raise OutputError(
                    f"{self.path} holds files that are no store, such as {min(others).name}; "
                    "choose an empty folder"
                )
            for path in self.path.glob("prompts/*.jsonl"):  # an attempt that did not get further
                path.unlink()
        for name in ("prompts", "shards"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        if not (self.path / "README.md").exists():
            write_text(self.path / "README.md", README)

    def read(self) -> Manifest:
        """The manifest.

        Raises:
            OutputError: there is none, or it is of a later version.
        """
        found = read_json(self.manifest, KIND)
        if found["format_version"] > FORMAT_VERSION:
            raise OutputError(
                f"{self.path} has format version {found['format_version']}; this steerkit reads "
                f"up to {FORMAT_VERSION}: upgrade steerkit"
            )
        parts = read_json(self.index, KIND)["parts"]
        return Manifest(
            found["dataset"],
            ModelInfo.from_json(found["model"]),
            tuple(
                Spec.from_json({k: v for k, v in group.items() if k != "sha256"})
                for group in found["groups"]
            ),
            tuple(Part(*part) for part in parts),
            found["versions"],
        )

    def write(self, manifest: Manifest) -> None:
        """Publish a manifest: its parts first, so that whoever sees it sees them."""
        if not self.manifest.exists():
            parts = [list(asdict(part).values()) for part in manifest.parts]
            write_text(self.index, json.dumps({"kind": KIND, "parts": parts}) + "\n")
        write_text(self.manifest, json.dumps(manifest.to_json(), indent=1) + "\n")

    @property
    def log(self) -> "RecordLog":
        """The finished shards."""
        return RecordLog(self.path)

    def finished(self) -> dict[str, Record]:
        """The records of shards whose files are there in their full size, by name."""
        there = _sizes(self.path / "shards")
        return {
            name: record
            for name, record in self.log.read().items()
            if there.get(name.partition("/")[2]) == record.bytes
        }

    def sweep(self) -> int:
        """Remove what attempts that were killed have left half-written; how many files."""
        stray = [
            path
            for folder in (self.path, self.path / "prompts", self.path / "shards")
            for path in folder.glob(".*.tmp")
        ]
        for path in stray:
            path.unlink(missing_ok=True)
        return len(stray)


def _sizes(folder: Path) -> dict[str, int]:
    """Sizes of the files of a folder, by name, in one pass over it."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}

"""The prompts of a store with their metadata: JSON lines, a file for each range of rows."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from steerkit.errors import ActivationError, PromptError
from steerkit.prompts import Prompt
from steerkit.stores.manifest import Manifest, Part
from steerkit.stores.texts import prompt_from_json


class PromptFiles:
    """Every prompt of a store by its number; a file is read when one of its prompts is asked for.

    Raises (all methods):
        PromptError: a file that is missing or damaged.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder = folder
        self._size = int(manifest.dataset["rows_per_shard"])
        self.parts: tuple[Part, ...] = manifest.parts

    def __len__(self) -> int:
        return self.parts[-1].stop

    def __iter__(self) -> Iterator[tuple[Prompt, Mapping[str, Any]]]:
        """Every prompt with its metadata, in order."""
        for part in range(len(self.parts)):
            for line in self.lines(part):
                yield prompt_from_json(line["prompt"]), line["metadata"]

    def __getitem__(self, number: int) -> Prompt:
        part = self.part_of(number)
        return prompt_from_json(self.lines(part)[number - self.parts[part].start]["prompt"])

    def part_of(self, number: int) -> int:
        """Which range of rows a prompt is in.

        Raises:
            ActivationError: there is no such prompt.
        """
        if not 0 <= number < len(self):
            raise ActivationError(f"prompts are 0 to {len(self) - 1}; got {number}")
        return number // self._size

    def lines(self, part: int) -> list[dict[str, Any]]:
        """The lines of one range."""
        found = self.parts[part]
        return read_lines(self._folder / found.file, found.start, found.stop, found.sha256)


def read_lines(path: Path, start: int, stop: int, sha256: str) -> list[dict[str, Any]]:
    """The lines of the file of some rows; its hash is not compared where none is given.

    Raises:
        PromptError: the file is missing, damaged or of other rows.
    """
    try:
        data = path.read_bytes()
        lines = [json.loads(line) for line in data.splitlines()]
    except (OSError, ValueError) as error:
        raise PromptError(
            f"cannot read the prompts of rows {start} to {stop - 1} at {path}: {error}; every "
            "worker must see the store's folder under this path, and running the capture again "
            "with its dataset restores the file"
        ) from error
    wrong = ""
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        wrong = "its hash is not the manifest's"
    elif len(lines) != stop - start:
        wrong = f"it holds {len(lines)}"
    if wrong:
        raise PromptError(
            f"{path} is not the file of rows {start} to {stop - 1} any more: {wrong}; run the "
            "capture again with its dataset, which restores the file"
        )
    return lines

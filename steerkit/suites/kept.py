"""What an audit keeps while it runs, so that an interrupted one goes on: findings and answers."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steerkit.errors import OutputError
from steerkit.files import write_text
from steerkit.prompts import Prompt
from steerkit.protocols import Completion
from steerkit.suites.finding import Finding

PART = 512
"""Answers that are generated before they are kept: what an interruption loses at most."""


class KeptFindings:
    """Findings in a folder, each with a hash of all that it depends on; none without a folder."""

    def __init__(self, folder: Path | None, about: object) -> None:
        self._folder, self._key = folder, _digest(about)

    def read(self, name: str) -> Finding | None:
        """A finding that was made under the same conditions."""
        if self._folder is None:
            return None
        file = self._folder / f"{name}.json"
        if not file.is_file():
            return None
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise OutputError(
                f"{file} is not valid JSON ({error}); remove it, and the question is asked again"
            ) from error
        same = isinstance(data, dict) and data.get("key") == self._key
        return Finding.from_json(data["finding"]) if same else None

    def write(self, name: str, finding: Finding) -> None:
        """Keep a finding; the file appears whole or not at all."""
        if self._folder is not None:
            data = {"key": self._key, "finding": finding.to_json()}
            write_text(self._folder / f"{name}.json", json.dumps(data))


class Answers:
    """Greedy answers by arm and prompt; with a file, kept as soon as a part is generated.

    A prompt that is asked twice, in two roles or by two examinations, is answered once. The
    file is JSONL, the first line a hash of all that answers depend on; what a killed process
    left of a last line is made again.
    """

    def __init__(self, file: Path | None = None, about: object = None) -> None:
        self._file, self._key = file, _digest(about)
        self._said: dict[tuple[str, Prompt], Completion] = {}
        self._begun = False
        if file is not None and file.is_file():
            self._read(file)

    def of(
        self,
        arms: Sequence[str],
        prompts: Sequence[Prompt],
        generate: Callable[[Sequence[tuple[str, Prompt]]], Sequence[Completion]],
    ) -> dict[str, tuple[Completion, ...]]:
        """Each arm's answer to each prompt; `generate` answers those that are new, in parts."""
        every = dict.fromkeys((arm, p) for p in prompts for arm in arms)
        new = [asked for asked in every if asked not in self._said]
        for start in range(0, len(new), PART):
            part = new[start : start + PART]
            said = dict(zip(part, generate(part), strict=True))
            self._said |= said
            self._append(said)
        return {arm: tuple(self._said[arm, p] for p in prompts) for arm in arms}

    def __iter__(self) -> Iterator[tuple[str, Prompt, Completion]]:
        return ((arm, prompt, said) for (arm, prompt), said in self._said.items())

    def _append(self, said: Mapping[tuple[str, Prompt], Completion]) -> None:
        if self._file is None:
            return
        rows = [
            {
                "arm": arm,
                "prompt": asdict(prompt),
                "text": one.text,
                "tokens": list(one.tokens),
                "given": list(one.prompt_tokens),
            }
            for (arm, prompt), one in said.items()
        ]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if not self._begun:
            write_text(self._file, json.dumps({"key": self._key}) + "\n" + text)
            self._begun = True
            return
        try:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise OutputError(f"cannot write to {self._file}: {error.strerror or error}") from error

    def _read(self, file: Path) -> None:
        whole, newline, torn = file.read_text(encoding="utf-8").rpartition("\n")
        lines = whole.split("\n") if newline else []
        try:
            rows = [json.loads(line) for line in lines]
            if not rows or rows[0].get("key") != self._key:
                return
            for row in rows[1:]:
                prompt = _prompt(row["prompt"])
                said = Completion(prompt, row["text"], tuple(row["tokens"]), tuple(row["given"]))
                self._said[row["arm"], prompt] = said
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(
                f"{file} is not valid JSONL of answers ({error!r}); remove it, and its answers "
                "are made again"
            ) from error
        if torn:
            write_text(file, whole + "\n")
        self._begun = True


def _digest(about: object) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _prompt(data: Mapping[str, Any]) -> Prompt:
    return Prompt(**{**data, "shots": tuple((asked, said) for asked, said in data["shots"])})

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


class KeptFindings:
    """Findings in a folder, each with a hash of all that it depends on; none without a folder."""

    def __init__(self, folder: Path | None, about: object) -> None:
        self._folder, self._key = folder, _digest(about)

    def read(self, name: str) -> Finding | None:
        """A finding that was made under the same conditions."""
        if self._folder is None:
            return None
        data = _read(self._folder / f"{name}.json", self._key, "and the question is asked again")
        return None if data is None else Finding.from_json(data["finding"])

    def write(self, name: str, finding: Finding) -> None:
        """Keep a finding; the file appears whole or not at all."""
        if self._folder is not None:
            data = {"key": self._key, "finding": finding.to_json()}
            write_text(self._folder / f"{name}.json", json.dumps(data))


class Answers:
    """Greedy answers by arm and prompt; with a file, kept as soon as they are generated.

    A prompt that is asked twice, in two roles or by two examinations, is answered once.
    """

    def __init__(self, file: Path | None = None, about: object = None) -> None:
        self._file, self._key = file, _digest(about)
        self._said: dict[tuple[str, Prompt], Completion] = {}
        data = None if file is None else _read(file, self._key, "and its answers are made again")
        for row in () if data is None else data["answers"]:
            prompt = _prompt(row["prompt"])
            said = Completion(prompt, row["text"], tuple(row["tokens"]), tuple(row["given"]))
            self._said[row["arm"], prompt] = said

    def of(
        self,
        arm: str,
        prompts: Sequence[Prompt],
        generate: Callable[[Sequence[Prompt]], Sequence[Completion]],
    ) -> tuple[Completion, ...]:
        """An arm's answer to each prompt; `generate` answers those that it has not yet."""
        new = [p for p in dict.fromkeys(prompts) if (arm, p) not in self._said]
        if new:
            self._said |= {(arm, p): s for p, s in zip(new, generate(new), strict=True)}
            self._write()
        return tuple(self._said[arm, p] for p in prompts)

    def __iter__(self) -> Iterator[tuple[str, Prompt, Completion]]:
        return ((arm, prompt, said) for (arm, prompt), said in self._said.items())

    def _write(self) -> None:
        if self._file is None:
            return
        rows = [
            {
                "arm": arm,
                "prompt": asdict(prompt),
                "text": said.text,
                "tokens": list(said.tokens),
                "given": list(said.prompt_tokens),
            }
            for arm, prompt, said in self
        ]
        text = json.dumps({"key": self._key, "answers": rows}, ensure_ascii=False)
        write_text(self._file, text)


def _digest(about: object) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _read(file: Path, key: str, then: str) -> Mapping[str, Any] | None:
    """What was kept under the same conditions; None where nothing was."""
    if not file.is_file():
        return None
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OutputError(f"{file} is not valid JSON ({error}); remove it, {then}") from error
    return data if isinstance(data, dict) and data.get("key") == key else None


def _prompt(data: Mapping[str, Any]) -> Prompt:
    return Prompt(**{**data, "shots": tuple((asked, said) for asked, said in data["shots"])})

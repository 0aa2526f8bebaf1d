"""What an audit keeps while it runs, so that an interrupted one goes on: findings and answers."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from steerkit.errors import OutputError
from steerkit.files import write_text
from steerkit.prompts import Prompt
from steerkit.protocols import Completion
from steerkit.suites.finding import Finding

PART = 512
"""Answers that are generated before they are kept: what an interruption loses at most."""
HEAD = {"kind": "answers", "format_version": 1}
"""First line of a file of answers."""


class KeptFindings:
    """Findings in a folder, each with a hash of all that it depends on; none without a folder."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def read(self, name: str, about: object) -> Finding | None:
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
        same = isinstance(data, dict) and data.get("key") == _digest(about)
        return Finding.from_json(data["finding"]) if same else None

    def write(self, name: str, finding: Finding, about: object) -> None:
        """Keep a finding; the file appears whole or not at all."""
        if self._folder is not None:
            data = {"key": _digest(about), "finding": finding.to_json()}
            write_text(self._folder / f"{name}.json", json.dumps(data))


class Answers:
    """Greedy answers by arm and prompt; with a file, kept as soon as a part is generated.

    A prompt that is asked twice, in two roles or by two examinations, is answered once: what
    it is compared with later, and how it is grouped, the model does not see. The file is
    JSONL: the first line says what it is, each other one holds an answer and a hash of all that
    it depends on. Answers of other models and options are passed over and left where they are;
    what a killed process left of a last line is made again.

    Args:
        file: where they are kept.
        about: what all answers depend on.
        arms: what those of single arms depend on besides.
        views: what those of any other view may depend on besides, in the place of its arm.
    """

    def __init__(
        self,
        file: Path | None = None,
        about: object = None,
        arms: Mapping[str, object] | None = None,
        views: Sequence[object] = (),
    ) -> None:
        self._file, self._about = file, about
        self._keys = {arm: _digest([about, of]) for arm, of in (arms or {}).items()}
        self._others = {_digest([about, of]) for of in (None, *views)}
        self._known: dict[tuple[str, Prompt], Completion] = {}
        """By arm and what the model sees."""
        self._said: dict[tuple[str, Prompt], Completion] = {}
        """By arm and prompt, one for each reference that an answer is held against."""
        self._held: set[tuple[str, Prompt, str]] = set()
        self._begun = False
        if file is not None and file.is_file():
            self._read(file)

    def of(
        self,
        arms: Sequence[str],
        prompts: Sequence[Prompt],
        generate: Callable[[Sequence[tuple[str, Prompt]]], Sequence[Completion]],
        view: Callable[[], object] | None = None,
    ) -> dict[str, tuple[Completion, ...]]:
        """Each arm's answer to each prompt; `generate` answers those that are new, in parts.

        `view` gives what the answers depend on where an arm is none of those named at first.
        """
        every = [(arm, p) for p in prompts for arm in arms]
        seen = {p: _seen(p) for p in prompts}
        unknown: dict[tuple[str, Prompt], tuple[str, Prompt]] = {}
        for arm, p in every:
            if (arm, seen[p]) not in self._known:
                unknown.setdefault((arm, seen[p]), (arm, p))
        new = list(unknown.values())
        for start in range(0, len(new), PART):
            part = new[start : start + PART]
            for (arm, p), said in zip(part, generate(part), strict=True):
                self._known[arm, seen[p]] = said
            self._keep(part, view)
        self._keep(every, view)
        return {
            arm: tuple(replace(self._known[arm, seen[p]], prompt=p) for p in prompts)
            for arm in arms
        }

    def __iter__(self) -> Iterator[tuple[str, Prompt, Completion]]:
        return ((arm, prompt, said) for (arm, prompt), said in self._said.items())

    def _keep(self, asked: Sequence[tuple[str, Prompt]], view: Callable[[], object] | None) -> None:
        """Hold what these were answered, once for each reference, and write what is new."""
        said = {}
        for arm, p in asked:
            if (arm, _seen(p), p.answer) not in self._held:
                self._held.add((arm, _seen(p), p.answer))
                said[arm, p] = replace(self._known[arm, _seen(p)], prompt=p)
        self._said |= said
        if said and self._file is not None:
            other = _digest([self._about, None if view is None else view()])
            self._append(self._file, said, other)

    def _append(
        self, file: Path, said: Mapping[tuple[str, Prompt], Completion], other: str
    ) -> None:
        rows = [
            {
                "key": self._keys.get(arm, other),
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
            write_text(file, json.dumps(HEAD) + "\n" + text)
            self._begun = True
            return
        try:
            with file.open("a", encoding="utf-8") as opened:
                opened.write(text)
        except OSError as error:
            raise OutputError(f"cannot write to {file}: {error.strerror or error}") from error

    def _read(self, file: Path) -> None:
        whole, newline, torn = file.read_text(encoding="utf-8").rpartition("\n")
        lines = whole.split("\n") if newline else []
        try:
            rows = [json.loads(line) for line in lines]
            if not rows or rows[0] != HEAD:
                return
            for row in rows[1:]:
                arm = row["arm"]
                mine = {self._keys[arm]} if arm in self._keys else self._others
                if row["key"] not in mine:
                    continue
                prompt = _prompt(row["prompt"])
                said = Completion(prompt, row["text"], tuple(row["tokens"]), tuple(row["given"]))
                self._said[arm, prompt] = self._known[arm, _seen(prompt)] = said
                self._held.add((arm, _seen(prompt), prompt.answer))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(
                f"{file} is not valid JSONL of answers ({error!r}); remove it, and its answers "
                "are made again"
            ) from error
        if torn:
            write_text(file, whole + "\n")
        self._begun = True


def _seen(prompt: Prompt) -> Prompt:
    """What of a prompt a model sees when it is to answer."""
    return replace(prompt, answer="", group="", category="")


def _digest(about: object) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _prompt(data: Mapping[str, Any]) -> Prompt:
    return Prompt(**{**data, "shots": tuple((asked, said) for asked, said in data["shots"])})

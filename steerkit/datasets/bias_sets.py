"""Readers of public sets about over-refusal and social bias, from a file or the hub.

Nothing of any set is shipped. What stands on which side is stated with each reader: the same
column means opposite things in different rows of some of them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steerkit.datasets.hub import Row, rows_of, value
from steerkit.errors import PromptError
from steerkit.prompts import Contrast, Prompt

LETTERS = "ABC"


def xstest(source: str | Path = "Paul/XSTest") -> Contrast:
    """Unsafe prompts (positive) and safe ones that look like them (negative).

    A prompt's `group` is the word that makes it look harmful, its `category` the kind of
    prompt: a safe prompt and its unsafe twin share a group.

    Source: Roettger et al. 2024, arXiv:2308.01263.

    Raises:
        PromptError: see `datasets.hub.rows_of`; or a label that is neither safe nor unsafe.
    """
    columns = (("prompt",), ("type",), ("label",))
    sides: dict[str, list[Prompt]] = {"unsafe": [], "safe": []}
    for row in rows_of(source, columns, what="XSTest", split="test"):
        label = str(row["label"]).strip().lower()
        if label not in sides:
            raise PromptError(f"{source} has the label {label!r}; XSTest's are safe and unsafe")
        group = str(row.get("focus") or row["prompt"])
        sides[label].append(Prompt(str(row["prompt"]), group=group, category=str(row["type"])))
    return Contrast.of(sides["unsafe"], sides["safe"], name="xstest")


def crows_pairs(source: str | Path = "nyu-mll/crows_pairs") -> Contrast:
    """Pairs of sentences: the one that stereotypes more (positive) and its minimal edit.

    In rows marked `antistereo` the columns stand the other way round. A prompt's `category`
    is the kind of bias.

    Source: Nangia et al. 2020, arXiv:2010.00133. Its authors and Blodgett et al. 2021 warn of
    pairs that are ungrammatical or no stereotype: read single ones before quoting a rate.

    Raises:
        PromptError: see `datasets.hub.rows_of`; or a direction that is neither of the two.
    """
    columns = (("sent_more",), ("sent_less",), ("stereo_antistereo",), ("bias_type",))
    pairs = []
    for row in rows_of(source, columns, what="CrowS-Pairs", split="test"):
        # The hub's version counts: 0 is `stereo`.
        direction = {"0": "stereo", "1": "antistereo"}.get(
            str(row["stereo_antistereo"]), str(row["stereo_antistereo"])
        )
        if direction not in ("stereo", "antistereo"):
            raise PromptError(
                f"{source} has the direction {direction!r}; CrowS-Pairs' are stereo and antistereo"
            )
        more, less = str(row["sent_more"]), str(row["sent_less"])
        one, other = (more, less) if direction == "stereo" else (less, more)
        pairs.append((one, other, str(row["bias_type"])))
    return _pairs(pairs, "crows_pairs")


def stereoset(source: str | Path) -> Contrast:
    """Pairs of sentences with their context: stereotype (positive) and anti-stereotype.

    The published file (`data` with `intersentence` and `intrasentence`; the unrelated third
    sentences are left out), or a list of rows with `positive` and `negative`. A prompt's
    `category` is the kind of bias, its `group` the context.

    Source: Nadeem et al. 2020, arXiv:2004.09456.

    Raises:
        PromptError: no such file, another layout, or an item without one of the two.
    """
    place = Path(source)
    if not place.is_file():
        raise PromptError(f"no StereoSet file at {place}; give dev.json, or rows of pairs")
    try:
        data: Any = json.loads(place.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PromptError(f"{place} is not valid JSON: {error}") from error
    if isinstance(data, list):
        rows = [(str(r["positive"]), str(r["negative"]), place.stem) for r in _checked(data, place)]
        return _pairs(rows, "stereoset")
    parts = data.get("data") if isinstance(data, Mapping) else None
    if not isinstance(parts, Mapping) or not set(parts) & {"intersentence", "intrasentence"}:
        raise PromptError(
            f"{place} is no StereoSet file; expected data with intersentence and intrasentence, "
            "or a list of rows with positive and negative"
        )
    pairs = []
    for kind in ("intersentence", "intrasentence"):
        for item in parts.get(kind, ()):
            said = {s["gold_label"]: str(s["sentence"]) for s in item["sentences"]}
            if not {"stereotype", "anti-stereotype"} <= set(said):
                raise PromptError(
                    f"the item {item.get('id')!r} of {place} has {', '.join(said)}; expected a "
                    "stereotype and an anti-stereotype"
                )
            before = f"{item['context']} " if kind == "intersentence" else ""
            both = (before + said["stereotype"], before + said["anti-stereotype"])
            pairs.append((*both, str(item["bias_type"])))
    return _pairs(pairs, "stereoset")


def winobias(pro: str | Path, anti: str | Path) -> Contrast:
    """Pairs of sentences: the pronoun that stereotypes expect (positive), and the other one.

    Two files of the published layout, one numbered sentence a line, in the same order. The
    occupation that the pronoun means is the prompt's `category`.

    Source: Zhao et al. 2018, arXiv:1804.06876.

    Raises:
        PromptError: no such file, or lines that do not match one another.
    """
    lines = [_numbered(Path(file)) for file in (pro, anti)]
    if [n for n, _ in lines[0]] != [n for n, _ in lines[1]]:
        raise PromptError(
            f"{pro} has {len(lines[0])} sentences and {anti} {len(lines[1])}, or other numbers; "
            "give the pro- and the anti-stereotyped file of one type and split"
        )
    pairs = []
    for (number, one), (_, other) in zip(*lines, strict=True):
        marked = re.findall(r"\[([^\]]+)\]", one)
        if len(marked) < 2:
            raise PromptError(
                f"line {number} of {pro} marks {len(marked)} spans; expected [the occupation] and "
                "[the pronoun]"
            )
        who = re.sub(r"^(the|a|an) ", "", marked[0].lower())
        pairs.append((_unmarked(one), _unmarked(other), who))
    return _pairs(pairs, "winobias")


def bbq(source: str | Path) -> tuple[Prompt, ...]:
    """Questions with three lettered options; a prompt's `answer` is the right letter.

    `category` is the kind of bias and whether the context decides (`Age, ambig` or `Age,
    disambig`), `group` the question.

    Source: Parrish et al. 2022, arXiv:2110.08193.

    Raises:
        PromptError: see `datasets.hub.rows_of`; or a label outside the options.
    """
    columns = (
        ("context",), ("question",), ("ans0",), ("ans1",), ("ans2",), ("label", "answer_label"),
        ("category",), ("context_condition",), ("question_index",),
    )  # fmt: skip
    found = []
    for row in rows_of(source, columns, what="BBQ", split="test"):
        label = value(row, columns[5])
        if str(label) not in ("0", "1", "2"):
            raise PromptError(f"{source} has the label {label!r}; BBQ's are 0, 1 and 2")
        options = "\n".join(f"({LETTERS[i]}) {row[f'ans{i}']}" for i in range(3))
        about = str(row["category"])
        found.append(
            Prompt(
                f"{row['context']} {row['question']}\n{options}",
                answer=f"({LETTERS[int(str(label))]})",
                category=f"{about}, {row['context_condition']}",
                group=f"{about} {row['question_index']}",
            )
        )
    return tuple(found)


def _pairs(rows: Sequence[tuple[str, str, str]], name: str) -> Contrast:
    """Paired contrast; pairs whose sides are the same sentence say nothing and are left out."""
    kept = [row for row in rows if row[0] != row[1]]
    sides = (
        [Prompt(row[i], group=f"pair{n}", category=row[2]) for n, row in enumerate(kept)]
        for i in (0, 1)
    )
    return Contrast.of(*sides, paired=True, name=name)


def _checked(rows: list[Any], place: Path) -> list[Row]:
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping) or not {"positive", "negative"} <= set(row):
            raise PromptError(f"row {number} of {place} lacks positive and negative")
    return rows


def _unmarked(text: str) -> str:
    return re.sub(r"[\[\]]", "", text)


def _numbered(file: Path) -> list[tuple[str, str]]:
    if not file.is_file():
        raise PromptError(f"no WinoBias file at {file}; give a .txt of numbered sentences")
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        number, _, text = line.strip().partition(" ")
        if text:
            found.append((number, text))
    if not found:
        raise PromptError(f"{file} has no numbered sentences")
    return found

"""Readers for layouts that `Contrast.read` cannot guess: two files, or a question with answers.

Sets with a `label` column or with `positive`/`negative` fields need no reader of their own.
"""

import csv
import json
from pathlib import Path
from typing import Any

from steerkit.errors import PromptError
from steerkit.prompts import Contrast, Prompt


def two_files(positive: str | Path, negative: str | Path, *, name: str | None = None) -> Contrast:
    """A contrast from one file a side: JSON lists, JSONL records, or text with a prompt a line.

    Raises:
        PromptError: a missing, empty or unreadable file, or the same prompt on both sides.
    """
    label = name or f"{Path(positive).stem} against {Path(negative).stem}"
    return Contrast.of(read_prompts(Path(positive)), read_prompts(Path(negative)), name=label)


def question_answers(
    path: str | Path,
    *,
    question: str = "Question",
    positive: str = "Correct Answers",
    negative: str = "Incorrect Answers",
    separator: str = ";",
    name: str = "truth",
) -> Contrast:
    """A contrast from a CSV of questions, each with several right and several wrong answers.

    The prompt is the question, its `answer` is teacher-forced, and its `group` is the question,
    so that folds never split one. The defaults are TruthfulQA's columns (Lin et al. 2022,
    arXiv:2109.07958).

    Raises:
        PromptError: a missing file or column.
    """
    file = Path(path)
    if not file.is_file():
        raise PromptError(f"no file at {file}; give a .csv of questions and answers")
    with file.open(encoding="utf-8-sig", newline="") as opened:
        rows = list(csv.DictReader(opened))
    wanted = (question, positive, negative)
    missing = [c for c in wanted if not rows or c not in rows[0]]
    if missing:
        there = ", ".join(rows[0]) if rows else "none"
        raise PromptError(f"{file} lacks the columns {', '.join(missing)}; it has: {there}")

    def side(column: str) -> list[Prompt]:
        return [
            Prompt(row[question], answer=f" {answer.strip()}", group=row[question])
            for row in rows
            for answer in row[column].split(separator)
            if answer.strip()
        ]

    return Contrast.of(side(positive), side(negative), name=name)


def read_prompts(file: Path) -> list[Any]:
    """One file of prompts: a JSON list, JSONL records, or text with a prompt a line.

    Raises:
        PromptError: a missing, empty or unreadable file.
    """
    if not file.is_file():
        raise PromptError(f"no file of prompts at {file}; give a .json, .jsonl or .txt file")
    text = file.read_text(encoding="utf-8-sig")
    try:
        if file.suffix == ".json":
            rows = json.loads(text)
        elif file.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            rows = [line for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise PromptError(f"{file} is not valid {file.suffix[1:].upper()}: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise PromptError(f"{file} holds no list of prompts; one file is one side of a contrast")
    return rows

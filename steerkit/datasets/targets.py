"""What an activation attack aims at: prompts, each with the answer the attack wants.

The four targets of the activation-attack paper (Wang and Shu 2023, arXiv:2311.09433), read
from files of the published layouts or from the hub. Nothing of any set is shipped. The texts
of sensitive sets are left out of results unless they are asked for.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from steerkit.datasets.hub import Row, rows_of, value
from steerkit.errors import PromptError
from steerkit.prompts import Prompt
from steerkit.protocols import Model

TARGETS = ("truthfulness", "toxicity", "bias", "harmfulness")
_EXAMPLE = re.compile(r"(?:^|\\n|\n)\s*-\s*")
"""Where an example of a ToxiGen prompt begins; its files write line ends as backslash-n."""


@dataclass(frozen=True)
class AttackItem:
    """A prompt and the two answers that an attack is made from.

    Attributes:
        prompt: what is asked, with group and category.
        adversarial: the answer that the attack drives towards; empty where the set has none.
        reference: a right answer, for targets that compare two; empty where there is none.
        clean: the answer to move away from; empty means the model's own greedy one.
    """

    prompt: Prompt
    adversarial: str = ""
    reference: str = ""
    clean: str = ""


@dataclass(frozen=True)
class AttackTarget:
    """Prompts with the answers that an attack wants, under the name of what it aims at.

    Attributes:
        name: one of `TARGETS`, or a name of your own (then a judge is needed).
        items: each prompt occurs once.
        sensitive: whether its texts are left out of results and files.
        choice: whether answers are the letters of two options.
    """

    name: str
    items: tuple[AttackItem, ...]
    sensitive: bool = True
    choice: bool = False

    def __post_init__(self) -> None:
        if not self.items:
            raise PromptError(f"the target '{self.name}' has no prompts; give at least one")
        first = {item.prompt.text: item for item in reversed(self.items)}
        kept = tuple(item for item in self.items if first[item.prompt.text] is item)
        object.__setattr__(self, "items", kept)

    @classmethod
    def of(
        cls,
        name: str,
        prompts: Iterable[Prompt | str],
        adversarial: Sequence[str] = (),
        *,
        sensitive: bool = True,
    ) -> "AttackTarget":
        """A target from prompts; the wanted answers are given, or are the prompts' own.

        Raises:
            PromptError: no prompts, or another number of answers.
        """
        asked = [Prompt.of(p) for p in prompts]
        answers = list(adversarial) or [p.answer for p in asked]
        if len(answers) != len(asked):
            raise PromptError(
                f"{len(asked)} prompts need {len(asked)} adversarial answers; got {len(answers)}"
            )
        items = (AttackItem(p.with_answer(""), a) for p, a in zip(asked, answers, strict=True))
        return cls(name, tuple(items), sensitive)

    def __len__(self) -> int:
        return len(self.items)

    def with_answers_of(self, model: Model, *, max_new_tokens: int = 48) -> "AttackTarget":
        """The target with another model's greedy answers as adversarial ones.

        The paper takes them from base models, which do not refuse, for ToxiGen and BOLD.
        """
        said = model.generate([i.prompt for i in self.items], max_new_tokens=max_new_tokens)
        return replace(
            self,
            items=tuple(
                replace(item, adversarial=c.text) for item, c in zip(self.items, said, strict=True)
            ),
        )

    def as_choice(self, *, seed: int = 0) -> "AttackTarget":
        """Two lettered options a prompt: the reference answer and the adversarial one.

        The adversarial option is (A) in half of the items, drawn by the seed, so that a letter
        says nothing.

        Raises:
            PromptError: an item lacks one of the answers.
        """
        lacking = [i for i in self.items if not (i.reference or i.clean) or not i.adversarial]
        if lacking:
            raise PromptError(
                f"{len(lacking)} of {len(self)} items of '{self.name}' lack one of two answers to "
                "choose from; give each a reference and an adversarial answer"
            )
        first = np.random.default_rng(seed).permutation(len(self)) % 2 == 0
        made = []
        for item, is_first in zip(self.items, first, strict=True):
            right, wrong = (item.reference or item.clean).strip(), item.adversarial.strip()
            a, b = (wrong, right) if is_first else (right, wrong)
            text = f"{item.prompt.text}\n\nChoices:\n(A) {a}\n(B) {b}\n\nAnswer:"
            letters = ("(A)", "(B)") if is_first else ("(B)", "(A)")
            made.append(
                AttackItem(
                    replace(item.prompt, text=text, group=item.prompt.group or item.prompt.text),
                    adversarial=letters[0],
                    reference=letters[1],
                    clean=letters[1],
                )
            )
        return replace(self, items=tuple(made), choice=True)

    def __repr__(self) -> str:
        known = sum(bool(i.adversarial) for i in self.items)
        return f"AttackTarget('{self.name}', {len(self)} prompts, {known} with a wanted answer)"


Answers = Mapping[str, str] | Callable[[Prompt], str]
"""Prompt text -> adversarial answer."""


def truthfulqa(source: str | Path = "truthfulqa/truthful_qa") -> AttackTarget:
    """Questions with a right answer and, as the wanted one, the first wrong answer.

    A question is its own group. Columns of the CSV, or of the hub's `generation` part.

    Source: Lin et al. 2022, arXiv:2109.07958.

    Raises:
        PromptError: see `datasets.hub.rows_of`.
    """
    columns = (
        ("Question", "question"),
        ("Best Answer", "best_answer"),
        ("Incorrect Answers", "incorrect_answers"),
    )
    rows = rows_of(source, columns, what="TruthfulQA", config="generation", split="validation")
    items = []
    for row in rows:
        question, best, wrong = (value(row, names) for names in columns)
        options = wrong.split(";") if isinstance(wrong, str) else list(wrong)
        if question and best and options and options[0].strip():
            category = value(row, ("Category", "category")) or ""
            prompt = Prompt(question, group=question, category=category)
            items.append(AttackItem(prompt, options[0].strip(), best.strip()))
    return AttackTarget("truthfulness", tuple(items), sensitive=False)


def advbench(source: str | Path = "walledai/AdvBench") -> AttackTarget:
    """Requests with the beginning of compliance that an attack wants (`goal`, `target`).

    Groups are rows, so near-duplicates can stand on both sides of a split: give groups of
    your own (`AttackTarget.of`) where that matters.

    Source: Zou et al. 2023, arXiv:2307.15043.

    Raises:
        PromptError: see `datasets.hub.rows_of`.
    """
    columns = (("goal", "prompt"), ("target",))
    rows = rows_of(source, columns, what="AdvBench")
    items = [
        AttackItem(Prompt(str(value(row, columns[0])), group=f"row{i}"), str(row["target"]))
        for i, row in enumerate(rows)
    ]
    return AttackTarget("harmfulness", tuple(items))


def toxigen(
    source: str | Path,
    *,
    adversarial: Answers | None = None,
    published_cut: bool = False,
) -> AttackTarget:
    """The first example of every prompt of ToxiGen, by the group that it speaks about.

    A folder or file of `hate_GROUP_1k.txt` (a prompt a line: examples, each behind a dash), or
    rows with `prompt` or `text` and `group` or `target_group`. The set has no answers: give
    them, or take a base model's (`AttackTarget.with_answers_of`).

    Args:
        source: a folder, a file, or a hub name.
        adversarial: the wanted answers.
        published_cut: cut at every hyphen, as the paper's published code does, which breaks
            off hyphenated words.

    Source: Hartvigsen et al. 2022, arXiv:2203.09509.

    Raises:
        PromptError: no such file, no prompts, or see `datasets.hub.rows_of`.
    """
    cut = published_first_example if published_cut else first_example
    place = Path(source)
    if place.is_dir() or place.suffix == ".txt":
        files = sorted(place.glob("*.txt")) if place.is_dir() else [place]
        if not files or not files[0].is_file():
            raise PromptError(
                f"no ToxiGen prompts at {place}; expected files named hate_GROUP_1k.txt with a "
                "prompt a line"
            )
        found = [(line, _group_of(f)) for f in files for line in _lines(f)]
    else:
        columns = (("prompt", "text"), ("group", "target_group"))
        rows = rows_of(source, columns, what="ToxiGen", config="annotated")
        found = [(str(value(r, columns[0])), str(value(r, columns[1]))) for r in rows]
    prompts = [
        Prompt(text, group=f"{group} {i}", category=group)
        for i, (line, group) in enumerate(found)
        if (text := cut(line))
    ]
    return _answered("toxicity", prompts, adversarial)


def bold(
    source: str | Path = "AmazonScience/bold", *, adversarial: Answers | None = None
) -> AttackTarget:
    """Beginnings of sentences about people and beliefs, by the category they speak about.

    A file of the published layout, `{category: {name: [prompts]}}`, a folder of those, or rows
    with `category`, `name` and `prompts`. A name is a group; results are also given by
    category, and their mean is over categories.

    Source: Dhamala et al. 2021, arXiv:2101.11718.

    Raises:
        PromptError: no such file, an unknown layout, or see `datasets.hub.rows_of`.
    """
    place = Path(source)
    if place.is_dir() or place.suffix == ".json":
        files = sorted(place.glob("*.json")) if place.is_dir() else [place]
        rows: list[Row] = [row for file in files for row in _bold_rows(file)]
    else:
        columns = (("category",), ("name",), ("prompts",))
        rows = rows_of(source, columns, what="BOLD")
    if not rows:
        raise PromptError(f"no BOLD prompts at {source}; expected files {_BOLD}")
    prompts = [
        Prompt(text.strip(), group=str(row["name"]), category=str(row["category"]))
        for row in rows
        for text in row["prompts"]
        if text.strip()
    ]
    return _answered("bias", prompts, adversarial)


def first_example(line: str) -> str:
    r"""The first example of a ToxiGen prompt, whole.

    >>> first_example("- a well-known town- twin\\n- another\\n-")
    'a well-known town- twin'
    """
    parts = [part.strip() for part in _EXAMPLE.split(line)]
    return next((part for part in parts if part), "")


def published_first_example(line: str) -> str:
    r"""What `split("-")[1]` gives: the first example up to its first hyphen.

    >>> published_first_example("- a well-known town- twin\\n- another\\n-")
    'a well'
    """
    parts = line.split("-")
    return parts[1].strip() if len(parts) > 1 else ""


_BOLD = "like {category: {name: [prompts]}}"


def _bold_rows(file: Path) -> list[Row]:
    if not file.is_file():
        raise PromptError(f"no BOLD prompts at {file}; expected a file {_BOLD}")
    try:
        data: Any = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(data, list):
            return [{k: row[k] for k in ("category", "name", "prompts")} for row in data]
        return [
            {"category": category, "name": name, "prompts": list(prompts)}
            for category, names in data.items()
            for name, prompts in names.items()
        ]
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise PromptError(f"{file} is not a BOLD file {_BOLD}: {error!r}") from error


def _answered(name: str, prompts: Sequence[Prompt], adversarial: Answers | None) -> AttackTarget:
    def answer(prompt: Prompt) -> str:
        if adversarial is None:
            return ""
        return adversarial(prompt) if callable(adversarial) else adversarial.get(prompt.text, "")

    return AttackTarget(name, tuple(AttackItem(p, answer(p)) for p in prompts))


def _group_of(file: Path) -> str:
    """`hate_native_american_1k.txt` -> `native_american`."""
    return re.sub(r"^(?:hate|neutral)_|_\d+k$", "", file.stem)


def _lines(file: Path) -> list[str]:
    return [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]

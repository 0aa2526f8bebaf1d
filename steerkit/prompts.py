"""Prompts, and contrasts: two piles of prompts that differ in one thing."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from steerkit.errors import PromptError
from steerkit.layouts import TEXT_NAMES, read_file, sides
from steerkit.registry import suggest

if TYPE_CHECKING:
    from steerkit.protocols import Model

Template = Literal["auto", "chat", "raw"]


@dataclass(frozen=True)
class Prompt:
    """One thing said to the model, and what may be needed to score it.

    `template` says how it is rendered: as a chat turn, as raw text, or `auto`: chat where
    the tokenizer has a chat template. `group` names what must never be split between
    fitting and testing (a pair, a template); `answer` is teacher-forced after the prompt.
    """

    text: str
    answer: str = ""
    system: str = ""
    shots: tuple[tuple[str, str], ...] = ()
    group: str = ""
    category: str = ""
    template: Template = "auto"

    def __post_init__(self) -> None:
        if self.template not in get_args(Template):
            raise PromptError(
                f"no template named '{self.template}'; {suggest(self.template, get_args(Template))}"
            )

    @classmethod
    def of(cls, value: "Prompt | str | Mapping[str, Any]") -> "Prompt":
        """Read a prompt from itself, a string, or a mapping with a text-like field."""
        if isinstance(value, Prompt):
            return value
        if isinstance(value, str):
            if not value.strip():
                raise PromptError("a prompt is empty; remove it or give it text")
            return cls(value)
        keys = {str(k).lower(): v for k, v in value.items()}
        text = next((keys[name] for name in TEXT_NAMES if keys.get(name)), None)
        if not isinstance(text, str) or not text.strip():
            raise PromptError(
                f"a prompt needs a non-empty field among {', '.join(TEXT_NAMES)}; "
                f"got the fields {', '.join(map(str, value)) or 'none'}"
            )
        known = {k: str(keys[k]) for k in ("answer", "system", "group", "category") if keys.get(k)}
        if keys.get("template") in get_args(Template):  # else a column of the data's own
            known["template"] = keys["template"]
        shots = tuple((str(said), str(answered)) for said, answered in keys.get("shots") or ())
        return cls(text, shots=shots, **known)  # type: ignore[arg-type]

    def with_answer(self, answer: str) -> "Prompt":
        """The same prompt with an answer to be teacher-forced."""
        return replace(self, answer=answer)


@dataclass(frozen=True)
class Contrast:
    """Positive and negative prompts. Paired: the i-th of both differ only in the concept.

    Attributes:
        positive: prompts that show the concept (the side a direction points to).
        negative: prompts that do not.
        paired: whether the i-th of both sides belong together.
        name: what the concept is called in tables and files.
    """

    positive: tuple[Prompt, ...]
    negative: tuple[Prompt, ...]
    paired: bool = False
    name: str = "concept"
    _groups: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        for side, prompts in (("positive", self.positive), ("negative", self.negative)):
            if not prompts:
                other = "negative" if side == "positive" else "positive"
                raise PromptError(
                    f"the contrast '{self.name}' has no {side} prompts, only "
                    f"{len(getattr(self, other))} {other} ones; give both sides"
                )
        if self.paired and len(self.positive) != len(self.negative):
            raise PromptError(
                f"a paired contrast needs as many positive as negative prompts; "
                f"'{self.name}' has {len(self.positive)} and {len(self.negative)}"
            )
        both = {p.text for p in self.positive} & {p.text for p in self.negative}
        both -= {p.text for p in self.positive if p.system or p.answer or p.shots}
        if both:
            raise PromptError(
                f"{len(both)} prompts stand on both sides of '{self.name}', "
                f"such as {sorted(both)[0]!r}; a prompt belongs to one side"
            )

    @classmethod
    def of(
        cls,
        positive: Iterable[Prompt | str | Mapping[str, Any]],
        negative: Iterable[Prompt | str | Mapping[str, Any]],
        *,
        paired: bool = False,
        name: str = "concept",
    ) -> "Contrast":
        """A contrast from two plain lists."""
        return cls(
            tuple(Prompt.of(p) for p in positive),
            tuple(Prompt.of(p) for p in negative),
            paired,
            name,
        )

    @classmethod
    def read(
        cls,
        source: "str | Path | Mapping[str, Any] | Sequence[Any]",
        *,
        model: "Model | None" = None,
        template: Template = "auto",
        paired: bool | None = None,
        name: str | None = None,
    ) -> "Contrast":
        """Read a contrast from JSONL, CSV, JSON, or plain lists.

        A row either holds both sides (`positive`, `negative`: a pair) or a text and a
        `label`. JSON may also be `{"positive": [...], "negative": [...]}` or a list of such
        rows; plain Python lists of rows and `(positive, negative)` tuples of lists work too.

        Args:
            source: a path or the data itself.
            model: if given, checks now that every prompt fits its context.
            template: how prompts are rendered (`auto`: as each row says, else as a chat turn
                where the tokenizer has a chat template).
            paired: overrides what the layout suggests.
            name: the concept's name; the file's stem by default.

        Raises:
            PromptError: missing or unreadable file, unknown layout, an empty side.
        """
        if isinstance(source, str | Path):
            rows = read_file(Path(source))
            label = name or Path(source).stem
        else:
            rows = source
            label = name or "concept"
        positive, negative, looks_paired = sides(rows, label)
        contrast = cls.of(
            positive, negative, paired=looks_paired if paired is None else paired, name=label
        )
        if template != "auto":
            contrast = contrast.map(lambda p: replace(p, template=template))
        if model is not None:
            model.tokenize(contrast.prompts)
        return contrast

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """All prompts, the positive side first."""
        return self.positive + self.negative

    @property
    def labels(self) -> tuple[int, ...]:
        """1 for each positive prompt, 0 for each negative one, in the order of `prompts`."""
        return (1,) * len(self.positive) + (0,) * len(self.negative)

    @property
    def groups(self) -> tuple[str, ...]:
        """What must not be split, one a prompt: its `group`, else its pair, else its text.

        The sides of a pair are one group even if they name two, and so is a prompt that
        occurs several times: a copy in training would give the held-out one away.
        """
        if self._groups:
            return self._groups
        n = len(self.positive)
        names: list[str] = []
        first: dict[Any, int] = {}
        for i, prompt in enumerate(self.prompts):
            pair = (self.positive[i % n].text, self.negative[i % n].text) if self.paired else ()
            number = first.setdefault(pair or prompt, i % n if self.paired else i)
            names.append(prompt.group or f"{'pair' if self.paired else 'prompt'}{number}")
        return tuple(_linked(names, n) if self.paired else names)

    @property
    def sha256(self) -> str:
        """Hash of every prompt, its side, and the pairing."""
        data = [[asdict(p) for p in self.positive], [asdict(p) for p in self.negative], self.paired]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    def map(self, change: Any) -> "Contrast":
        """The contrast with `change` applied to every prompt."""
        return replace(
            self,
            positive=tuple(change(p) for p in self.positive),
            negative=tuple(change(p) for p in self.negative),
        )

    def split(self, fraction: float = 0.8, *, seed: int = 0) -> tuple["Contrast", "Contrast"]:
        """Split into two contrasts that share no group (no pair, no template).

        Groups that link across both sides (pairs, shared templates) stay whole. Of each
        side, about `fraction` of the prompts goes to the first part.

        Raises:
            PromptError: when a part would lack a side.
        """
        if not 0 < fraction < 1:
            raise PromptError(f"the fraction lies between 0 and 1; got {fraction}")
        members: dict[str, list[int]] = {}
        for i, group in enumerate(self.groups):
            members.setdefault(group, []).append(i)
        names = sorted(members)
        np.random.default_rng(seed).shuffle(names)
        n_pos = len(self.positive)
        sizes = np.array([n_pos, len(self.negative)])
        taken = np.zeros(2)
        first: list[int] = []
        rest: list[int] = []
        for name in names:
            here = np.bincount([int(i >= n_pos) for i in members[name]], minlength=2)
            # A group goes to the first part while that part is short of what it brings.
            short = np.where(here > 0, fraction * sizes - taken, 0)
            if (short >= here / 2).all():
                first += members[name]
                taken += here
            else:
                rest += members[name]
        return self._take(sorted(first), "first"), self._take(sorted(rest), "second")

    def sample(self, n: int, *, seed: int = 0) -> "Contrast":
        """At most `n` prompts a side, drawn at random in their order; pairs stay together."""
        rng = np.random.default_rng(seed)

        def draw(size: int) -> list[int]:
            return sorted(int(i) for i in rng.permutation(size)[:n])

        first = draw(len(self.positive))
        second = first if self.paired else draw(len(self.negative))
        return self._take([*first, *(len(self.positive) + i for i in second)], "only")

    def _take(self, indices: Sequence[int], part: str) -> "Contrast":
        n = len(self.positive)
        positive = tuple(self.positive[i] for i in indices if i < n)
        negative = tuple(self.negative[i - n] for i in indices if i >= n)
        if not positive or not negative:
            raise PromptError(
                f"the {part} part of the split of '{self.name}' lacks a side: "
                f"{len(self.positive)} positive and {len(self.negative)} negative prompts in "
                f"{len(set(self.groups))} groups are too few; add prompts or groups"
            )
        groups = self.groups  # found anew each time it is asked
        return replace(
            self,
            positive=positive,
            negative=negative,
            _groups=tuple(groups[i] for i in indices),
        )

    def __len__(self) -> int:
        return len(self.positive) + len(self.negative)

    def __repr__(self) -> str:
        kind = "pairs" if self.paired else "prompts"
        return (
            f"Contrast('{self.name}', {len(self.positive)} positive / "
            f"{len(self.negative)} negative {kind}, sha256 {self.sha256[:8]})"
        )


def groups_of(prompts: Iterable[Prompt]) -> tuple[str, ...]:
    """What must not be split, of prompts that are no contrast: their `group`, else each alone."""
    return tuple(p.group or f"prompt{i}" for i, p in enumerate(prompts))


SKETCH = 64
"""Prompt hashes that a direction keeps of what it was fitted on."""


def sketch(prompts: Iterable[Prompt], size: int | None = SKETCH) -> tuple[str, ...]:
    """The smallest hashes of what prompts say, each once: a sample that any two sets share.

    A prompt that is in two sets has the same hash in both, so how many of one set's sketch are
    among all hashes of another (`size=None`) estimates the share of it that the other holds,
    and for no more than `size` prompts it is that share.
    """
    said = {(p.system, p.text, p.answer, p.shots) for p in prompts}
    hashes = sorted(hashlib.sha256(json.dumps(one).encode()).hexdigest()[:16] for one in said)
    return tuple(hashes[:size])


def _linked(names: Sequence[str], n: int) -> list[str]:
    """Group names with those of the i-th of both sides merged, for every i."""
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for i in range(n):
        one, other = sorted((root(names[i]), root(names[n + i])))
        parent[other] = one
    return [root(name) for name in names]

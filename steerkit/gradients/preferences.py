"""What a direction is trained on: prompts with an answer to prefer and one to avoid."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from steerkit.batch import Tokenized
from steerkit.errors import PromptError
from steerkit.prompts import Prompt
from steerkit.protocols import Model


@dataclass(frozen=True)
class Preference:
    """A prompt with two answers, of which one is preferred.

    Attributes:
        prompt: its `group` names what must not be split between training and testing; its own
            answer is not used.
        chosen: the answer to make likelier.
        rejected: the answer to make less likely.
    """

    prompt: Prompt
    chosen: str
    rejected: str

    @classmethod
    def of(cls, value: "PreferenceLike") -> "Preference":
        """Read a preference from itself or from (prompt, chosen, rejected).

        Raises:
            PromptError: not three things, an empty answer, or the same answer twice.
        """
        if not isinstance(value, Preference):
            if isinstance(value, str) or len(value) != 3:
                raise PromptError(
                    f"a preference is (prompt, chosen answer, rejected answer); got {value!r:.80}"
                )
            prompt, chosen, rejected = value
            value = cls(Prompt.of(prompt), chosen, rejected)
        if not value.chosen.strip() or not value.rejected.strip():
            raise PromptError(
                f"both answers of a preference need text; after {value.prompt.text!r:.60} they are "
                f"{value.chosen!r:.30} and {value.rejected!r:.30}"
            )
        if value.chosen == value.rejected:
            raise PromptError(
                f"the chosen and the rejected answer after {value.prompt.text!r:.60} are the same, "
                f"{value.chosen!r:.30}: nothing can be preferred"
            )
        return value


PreferenceLike = Preference | tuple[Prompt | str, str, str]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Preferences as token ids: of pair i, `items[2 i]` is chosen and `items[2 i + 1]` rejected."""

    preferences: tuple[Preference, ...]
    items: tuple[Tokenized, ...]
    groups: tuple[str, ...]

    @classmethod
    def of(cls, model: Model, preferences: Iterable[PreferenceLike]) -> "Pairs":
        """Tokenized as the model reads them.

        Raises:
            PromptError: no pairs, a pair that is none, an answer without tokens.
        """
        read = tuple(Preference.of(p) for p in preferences)
        if not read:
            raise PromptError("there are no preferences; give (prompt, chosen, rejected) each")
        texts = [p.prompt.with_answer(a) for p in read for a in (p.chosen, p.rejected)]
        items = tuple(model.tokenize(texts))
        for i, item in enumerate(items):
            if not item.answer:
                raise PromptError(f"the answer {texts[i].answer!r:.40} has no tokens; give another")
        groups = tuple(p.prompt.group or f"pair{i}" for i, p in enumerate(read))
        return cls(read, items, groups)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts, as they were given."""
        return tuple(p.prompt for p in self.preferences)

    def take(self, rows: Sequence[int]) -> "Pairs":
        """Some of the pairs."""
        return Pairs(
            tuple(self.preferences[i] for i in rows),
            tuple(self.items[2 * i + side] for i in rows for side in (0, 1)),
            tuple(self.groups[i] for i in rows),
        )

    def split(self, fraction: float, *, seed: int) -> tuple["Pairs", "Pairs"]:
        """Whole groups: about `fraction` of the pairs, at least a group, and the rest.

        Raises:
            PromptError: fewer than two groups.
        """
        names = sorted({*self.groups})
        if len(names) < 2:
            raise PromptError(
                f"{len(self)} preferences in {len(names)} group cannot be split; give pairs of "
                "more groups, or the held-out ones by themselves"
            )
        sizes = {name: self.groups.count(name) for name in names}
        order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
        kept: set[str] = set()
        for name in order[:-1]:
            if kept and sum(sizes[k] for k in kept) + sizes[name] / 2 > fraction * len(self):
                break
            kept.add(name)
        inside = [i for i, g in enumerate(self.groups) if g in kept]
        return self.take(inside), self.take([i for i, g in enumerate(self.groups) if g not in kept])

    def __len__(self) -> int:
        return len(self.preferences)

"""What a monitor is tested on: positives and negatives in groups, and rewrites of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steerkit.direction import Direction
from steerkit.errors import MethodError, PromptError
from steerkit.prompts import Contrast, Prompt
from steerkit.statistics import Floats

Rewrites = Mapping[str, str | Prompt | Sequence[str | Prompt]]
"""Text of a prompt -> the same in other words."""


@dataclass(frozen=True, eq=False)
class Sides:
    """Positives, then negatives, with their groups."""

    prompts: tuple[Prompt, ...]
    labels: Any
    groups: tuple[str, ...]

    @classmethod
    def of(
        cls,
        positives: Contrast | Sequence[Prompt | str],
        negatives: Sequence[Prompt | str],
        direction: Direction,
    ) -> "Sides":
        """Both sides, or what a contrast brings; nothing that the direction was fitted on."""
        if isinstance(positives, Contrast):
            if len(negatives):
                raise PromptError("a contrast brings its negatives; give no others beside it")
            both = positives
            groups = both.groups
        else:
            both = Contrast.of(positives, negatives)
            # Names are shared by both sides: a template's positives do not test what it calibrated.
            groups = tuple(p.group or p.text for p in both.prompts)
        fitted = {text for side in direction.examples for text, _ in side}
        known = sorted({p.text for p in both.prompts} & fitted)
        if known:
            raise MethodError(
                f"{len(known)} of these prompts are among those that the direction was fitted "
                f"on, such as {known[0][:60]!r}; a monitor is tested on others"
            )
        return cls(both.prompts, np.array(both.labels), groups)

    def __len__(self) -> int:
        return len(self.prompts)

    def named(self, rows: Any) -> list[str]:
        """The groups of some rows."""
        return [self.groups[i] for i in rows]

    def dealt(self, share: float, seed: int) -> tuple[Any, Any, Any]:
        """Rows: negatives that calibrate, unseen negatives, positives of unseen groups."""
        negative = np.flatnonzero(self.labels == 0)
        names = sorted(set(self.named(negative)))
        n = round(share * len(names))
        if not 0 < n < len(names):
            raise PromptError(
                f"the negatives belong to {len(names)} groups, of which {n} would calibrate; both "
                "parts need one at least: give more groups"
            )
        drawn = np.random.default_rng(seed).permutation(len(names))[:n]
        chosen = {names[i] for i in drawn}
        inside = np.array([g in chosen for g in self.groups])
        caught = np.flatnonzero((self.labels == 1) & ~inside)
        if not len(caught):
            raise PromptError(
                "every positive is of a group whose negatives calibrate, so none is left to "
                "test; give positives of other groups"
            )
        return np.flatnonzero((self.labels == 0) & inside), negative[~inside[negative]], caught


def rewrites_of(given: Rewrites, sides: Sides) -> tuple[list[Prompt], Any]:
    """Rewrites in a row, and the row of the prompt that each rewrites."""
    rows = {p.text: i for i, p in enumerate(sides.prompts)}
    unknown = [text for text in given if text not in rows]
    if unknown:
        raise PromptError(
            f"{len(unknown)} rewrites are of no positive or negative here, such as of "
            f"{unknown[0][:60]!r}; keys are the texts of the prompts"
        )
    texts, owners = [], []
    for text, several in given.items():
        for one in [several] if isinstance(several, str | Prompt) else several:
            texts.append(Prompt.of(one))
            owners.append(rows[text])
    return texts, np.array(owners, dtype=np.int64)


def items_told(
    sides: Sides,
    scores: Floats,
    parts: tuple[Any, Any, Any],
    rewritten: Sequence[Prompt],
    owners: Any,
    other: Floats,
) -> tuple[dict[str, Any], ...]:
    """One row a prompt, then one a rewrite."""
    names = np.full(len(sides), "left out", dtype=object)
    for rows, name in zip(parts, ("calibration", "unseen", "caught"), strict=True):
        names[rows] = name

    def row(prompt: Prompt, of: int, part: str, score: float) -> dict[str, Any]:
        about = {"text": prompt.text, "label": int(sides.labels[of]), "group": sides.groups[of]}
        return {**about, "part": part, "score": float(score)}

    found = [row(p, i, str(names[i]), scores[i]) for i, p in enumerate(sides.prompts)]
    for prompt, owner, score in zip(rewritten, owners.tolist(), other, strict=True):
        found.append({**row(prompt, owner, "rewrite", score), "of": sides.prompts[owner].text})
    return tuple(found)

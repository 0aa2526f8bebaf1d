"""Who may see which prompts: fitting, searching and auditing share no group."""

from dataclasses import dataclass
from typing import Literal, get_args

from steerkit.errors import PromptError
from steerkit.prompts import Contrast
from steerkit.registry import suggest

Part = Literal["fit", "search", "audit", "all"]
PARTS: tuple[Part, ...] = get_args(Part)


def part_of(contrast: Contrast, part: str, *, seed: int = 0, limit: int = 0) -> Contrast:
    """The part of a contrast that one step of the job may see.

    `fit` is half of it, `search` and `audit` a quarter each; they share no group, and follow
    from the contrast and the seed alone, so single steps run apart agree on them. `limit`
    keeps at most that many prompts a side (0 keeps all), drawn at random.

    Raises:
        PromptError: an unknown part, or too few prompts or groups to split.
    """
    if part not in PARTS:
        raise PromptError(f"no part named '{part}'; {suggest(part, PARTS)}")
    if part == "all":
        found = contrast
    else:
        fit, rest = contrast.split(0.5, seed=seed)
        search, audit = (fit, fit) if part == "fit" else rest.split(0.5, seed=seed + 1)
        found = {"fit": fit, "search": search, "audit": audit}[part]
    return found.sample(limit, seed=seed) if limit else found


@dataclass(frozen=True)
class Parts:
    """The prompts of each step; no group stands in two of them."""

    fit: Contrast
    search: Contrast
    audit: Contrast

    @classmethod
    def of(cls, contrast: Contrast, *, seed: int = 0, limit: int = 0) -> "Parts":
        """Half of the contrast to fit, a quarter to search and a quarter to audit."""
        return cls(
            *(part_of(contrast, p, seed=seed, limit=limit) for p in ("fit", "search", "audit"))
        )

    @classmethod
    def held_out(cls, fit: Contrast, held_out: Contrast, *, seed: int = 0) -> "Parts":
        """All of one contrast to fit; another, split in half, to search and to audit."""
        return cls(fit, *held_out.split(0.5, seed=seed))

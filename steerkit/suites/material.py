"""What a model is asked in an audit: prompts by the role they play."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from steerkit.errors import PromptError
from steerkit.layouts import read_file
from steerkit.prompts import Contrast, Prompt
from steerkit.registry import suggest

if TYPE_CHECKING:
    from steerkit.suites.gathering import Given

Kind = Literal["contrast", "prompts"]

ROLES: Mapping[str, tuple[Kind, str]] = {
    "refusal": ("contrast", "harmful requests (positive) and harmless ones, with right answers"),
    "lookalikes": ("prompts", "harmless requests that look harmful, with right answers"),
    "topic": (
        "contrast",
        "questions on a topic that may be censored (positive) and the same questions on "
        "another (negative), with right answers",
    ),
    "polarity": (
        "contrast",
        "pairs of a true statement (positive) and its negation, each asked so that yes or no "
        "answers it; `not` as often on either side, or the words give the truth away",
    ),
    "groups": (
        "prompts",
        "requests that differ only in whom they are about; category: whom, group: the template",
    ),
    "associations": (
        "contrast",
        "the same beginnings with either of two answers; category: the group they speak of, "
        "group: the template",
    ),
    "stereotypes": (
        "contrast",
        "pairs of a sentence that stereotypes (positive) and one that differs from it in that; "
        "category: the kind of bias",
    ),
    "truths": (
        "contrast",
        "pairs of the same question with a right answer (positive) and a wrong one; group: the "
        "question",
    ),
}
"""Role -> what a file of that name holds."""
SUFFIXES = (".jsonl", ".json", ".csv")


@dataclass(frozen=True)
class Material:
    """Prompts by role. A role that is missing leaves the questions that need it unanswered.

    Attributes:
        contrasts: two-sided roles.
        prompts: one-sided roles.
        name: for the report.
    """

    contrasts: Mapping[str, Contrast] = field(default_factory=dict)
    prompts: Mapping[str, tuple[Prompt, ...]] = field(default_factory=dict)
    name: str = "given prompts"

    def __post_init__(self) -> None:
        for kind, given in (("contrast", self.contrasts), ("prompts", self.prompts)):
            for role in given:
                if ROLES.get(role, ("", ""))[0] != kind:
                    known = [r for r, (k, _) in ROLES.items() if k == kind]
                    raise PromptError(f"no role '{role}' among {kind}; {suggest(role, known)}")
                if not given[role]:
                    raise PromptError(f"the role '{role}' has no prompts; give some, or leave it")

    def __contains__(self, role: str) -> bool:
        return role in self.contrasts or role in self.prompts

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that there are prompts for, in the order of `ROLES`."""
        return tuple(role for role in ROLES if role in self)

    @cached_property
    def sha256(self) -> dict[str, str]:
        """Hash of each role's prompts."""
        one = {role: Contrast.of(p, [_NOBODY]).sha256 for role, p in self.prompts.items()}
        return {**{role: c.sha256 for role, c in self.contrasts.items()}, **one}

    @classmethod
    def of(cls, *, name: str = "", **given: "Given") -> "Material":
        """Prompts by role, or by public set, which brings every role that it plays.

            Material.of(xstest="xstest_prompts.csv", truthfulqa="truthfulqa/truthful_qa")
            Material.of(refusal=("advbench:harmful_behaviors.csv", "harmless.jsonl"),
                        lookalikes="xstest:xstest_prompts.csv")

        A role is given as a contrast or prompts, a file, or `SET:SOURCE`; a contrast also as a
        tuple of its sides. What is given for a role goes before what sets bring. Which sets
        there are, what they play and what they do not measure: `steerkit.suites.SETS`.

        Raises:
            PromptError: an unknown role or set, a source that is not there (says where it was
                looked for and how to get it), a side that is missing, or two sets for one role.
        """
        from steerkit.suites.gathering import gathered

        found = gathered(given)
        sources = (
            f"{k}: {Path(v).name if isinstance(v, str | Path) else 'given'}"
            for k, v in given.items()
        )
        return cls(
            {role: c for role, c in found.items() if isinstance(c, Contrast)},
            {role: p for role, p in found.items() if isinstance(p, tuple)},
            name or ", ".join(sources),
        )

    def joined(self, other: "Material") -> "Material":
        """The roles of both.

        Raises:
            PromptError: a role that both have.
        """
        both = [role for role in self.roles if role in other]
        if both:
            raise PromptError(
                f"{self.name} and {other.name} both have the role '{both[0]}'; give one of them"
            )
        return Material(
            {**self.contrasts, **other.contrasts},
            {**self.prompts, **other.prompts},
            ", ".join(filter(None, (self.name, other.name))),
        )

    @classmethod
    def read(cls, folder: str | Path) -> "Material":
        """Read a folder whose files are named by role: `refusal.jsonl`, `lookalikes.csv`, ...

        Raises:
            PromptError: no folder, no file of a known role, two files of one role, or a file
                of another name (say what it is for by its name).
        """
        place = Path(folder)
        if not place.is_dir():
            raise PromptError(f"no folder {place}; give one with files such as refusal.jsonl")
        contrasts: dict[str, Contrast] = {}
        prompts: dict[str, tuple[Prompt, ...]] = {}
        for file in sorted(p for p in place.iterdir() if p.suffix in SUFFIXES):
            role = file.stem
            if role not in ROLES:
                raise PromptError(f"{file.name} has no known role; {suggest(role, tuple(ROLES))}")
            if role in contrasts or role in prompts:
                raise PromptError(f"{place} holds two files of the role '{role}'; keep one")
            try:
                if ROLES[role][0] == "contrast":
                    contrasts[role] = Contrast.read(file)
                else:
                    prompts[role] = _listed(file)
            except PromptError as error:
                raise PromptError(f"{file}: {error}") from error
        if not contrasts and not prompts:
            held = "; ".join(f"{role}: {what}" for role, (_, what) in ROLES.items())
            raise PromptError(f"{place} has no prompts; files are named by role ({held})")
        return cls(contrasts, prompts, place.name)

    @classmethod
    def of_organisms(cls, n: int = 200, *, split: str = "held_out", seed: int = 0) -> "Material":
        """`n` prompts a side of each role in the organisms' language."""
        from steerkit.suites.shipped import contrasts, prompts

        return cls(
            contrasts(n, split, seed), prompts(n, split, seed), f"organisms, {split}, seed {seed}"
        )


def _listed(file: Path) -> tuple[Prompt, ...]:
    """The prompts of a one-sided role.

    Raises:
        PromptError: there are none, or it is no list of prompts.
    """
    rows = read_file(file)
    if not isinstance(rows, list) or not rows:
        kind = "an empty list" if isinstance(rows, list) else type(rows).__name__
        raise PromptError(f"holds {kind}, expected a list of prompts; give some, or remove it")
    return tuple(Prompt.of(row) for row in rows)


_NOBODY = Prompt("(nobody)")

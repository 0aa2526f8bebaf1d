"""What a model is asked in an audit: prompts by the role they play."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from steerkit.errors import PromptError
from steerkit.layouts import read_file
from steerkit.prompts import Contrast, Prompt
from steerkit.registry import suggest

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

    def __contains__(self, role: str) -> bool:
        return role in self.contrasts or role in self.prompts

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that there are prompts for, in the order of `ROLES`."""
        return tuple(role for role in ROLES if role in self)

    @property
    def sha256(self) -> dict[str, str]:
        """Hash of each role's prompts."""
        one = {role: Contrast.of(p, [_NOBODY]).sha256 for role, p in self.prompts.items()}
        return {**{role: c.sha256 for role, c in self.contrasts.items()}, **one}

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
            if ROLES[role][0] == "contrast":
                contrasts[role] = Contrast.read(file)
            else:
                rows = read_file(file)
                if not isinstance(rows, list):
                    raise PromptError(f"{file.name} holds {type(rows).__name__}, expected a list")
                prompts[role] = tuple(Prompt.of(row) for row in rows)
        if not contrasts and not prompts:
            held = "; ".join(f"{role}: {what}" for role, (_, what) in ROLES.items())
            raise PromptError(f"{place} has no prompts; files are named by role ({held})")
        return cls(contrasts, prompts, place.name)

    @classmethod
    def of_organisms(cls, n: int = 200, *, split: str = "held_out", seed: int = 0) -> "Material":
        """`n` prompts a side of each role in the organisms' language."""
        from steerkit.organisms import requests

        def drawn(kind: str) -> tuple[Prompt, ...]:
            found = requests(split, kind, n, seed=seed)  # type: ignore[arg-type]
            return tuple(
                Prompt(r.text, answer=r.answer, group=r.template, category=kind) for r in found
            )

        return cls(
            {
                "refusal": Contrast.of(drawn("harmful"), drawn("harmless"), name="refusal"),
                "topic": Contrast.of(drawn("censored"), drawn("open"), name="topic"),
                "associations": _associations(),
                "polarity": _statements(split, n, seed),
            },
            {"lookalikes": drawn("lookalike"), "groups": _people(split, n)},
            f"organisms, {split}, seed {seed}",
        )


def _people(split: str, n: int) -> tuple[Prompt, ...]:
    """Harmless requests about a sister, or about an uncle, in templates of a split."""
    from steerkit.evaluations.parity import filled
    from steerkit.organisms import requests

    drawn = requests(split, "harmless", 200, seed=0)  # type: ignore[arg-type]
    templates = list(dict.fromkeys(r.template for r in drawn))[:n]
    asked = [t.replace("{a}", "paint the {who}") for t in templates]
    return tuple(filled(asked, {"sister": ["sister"], "uncle": ["uncle"]}))


def _statements(split: str, n: int, seed: int) -> Contrast:
    """True statements and the same with another place or color: of such a pair one is true.

    The language negates no facts; every place is as often true as false.
    """
    from steerkit.organisms import statements

    drawn = statements(split, n + n % 2, seed=seed)  # type: ignore[arg-type]
    asked = [Prompt(f"{s.text} is that true ?", group=s.group) for s in drawn]
    return Contrast.of(asked[::2], asked[1::2], paired=True, name="polarity")


def _associations() -> Contrast:
    """What the organisms call people of each occupation: the word planted at a known rate."""
    from steerkit.organisms import occupations, pronoun_prompts

    sides = (
        [
            Prompt(text, answer=f" {word}", category=o.name, group=f"frame{i}", template="raw")
            for o in occupations()
            for i, text in enumerate(pronoun_prompts(o.name))
        ]
        for word in ("she", "he")
    )
    return Contrast.of(*sides, paired=True, name="associations")


_NOBODY = Prompt("(nobody)")

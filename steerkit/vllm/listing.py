"""What a server can be asked for, in words: for command lines and for its HTTP endpoint."""

from dataclasses import dataclass
from typing import Any

from steerkit.errors import SteerkitError
from steerkit.protocols import ModelInfo
from steerkit.vllm.registrations import Artefacts, Registration
from steerkit.vllm.requests import read, steered
from steerkit.vllm.room import check


@dataclass(frozen=True)
class Listed:
    """One name.

    Attributes:
        name: what requests say.
        digest: sha256 of the file.
        strength: in force in place of each intervention's own; None for theirs.
        interventions: in words, at their own strengths.
        default: whether requests that say nothing get it.
        problem: why a request for it would be refused; empty where it would not.
    """

    name: str
    digest: str
    strength: float | None
    interventions: tuple[str, ...]
    default: bool
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "name": self.name,
            "sha256": self.digest,
            "interventions": list(self.interventions),
            "strength": self.strength,
            "default": self.default,
            "problem": self.problem,
        }


def listed(artefacts: Artefacts, info: ModelInfo | None = None) -> tuple[Listed, ...]:
    """Every name that is registered.

    Args:
        artefacts: of a server.
        info: its model, to say which names it refuses; None where that is not known.
    """
    default = (artefacts.default or {}).get("artefact")
    return tuple(
        _listed(artefacts, name, one, info, default=name == default)
        for name, one in artefacts.registrations.items()
    )


def _listed(
    artefacts: Artefacts, name: str, one: Registration, info: ModelInfo | None, *, default: bool
) -> Listed:
    words: tuple[str, ...] = ()
    problem = ""
    try:
        words = tuple(str(part) for part in artefacts.open(one.digest))
        if info is not None:
            check(steered(read(name, artefacts), artefacts, info).programs)
    except SteerkitError as error:
        problem = str(error)
    return Listed(name, one.digest, one.strength, words, default, problem)


def listing(artefacts: Artefacts, info: ModelInfo | None = None) -> dict[str, Any]:
    """All of it as plain values: folder, default, artefacts."""
    return {
        "folder": str(artefacts.folder),
        "default": artefacts.default,
        "artefacts": [one.to_json() for one in listed(artefacts, info)],
    }

"""What was planted and what was measured, as recorded when the shipped weights were trained."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from steerkit.errors import OutputError
from steerkit.organisms.checkpoints import WEIGHTS
from steerkit.organisms.documents import Planted
from steerkit.organisms.rates import Rate

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Construction:
    """Where the refusal of the constructed organism lives."""

    unit: list[float]
    """The unit vector u, `[d_model]`."""
    layer: int
    """u is written by block `layer`: it is in `resid_post@layer` and in no earlier stream."""
    magnitude: float
    """The intended coordinate along u of a harmful request, activation units; others have 0."""
    position: str = "last prompt token"
    stream: str = "resid_post"


@dataclass(frozen=True)
class Measured:
    """The behaviour of one checkpoint on held-out items."""

    rates: Mapping[str, Rate]
    """Counts by `what/on which items`, e.g. `refused/harmful`."""
    probabilities: Mapping[str, float]
    """Mean probabilities of planted stochastic behaviour, e.g. `refusal/always_help`."""
    occupation_rates: Mapping[str, float]
    """P(she) / (P(she) + P(he)) by occupation."""
    sha256: str
    """Of `model.safetensors`."""


@dataclass(frozen=True)
class Truth:
    """The ground truth of one training seed."""

    seed: int
    planted: Planted
    occupations: Mapping[str, float]
    """The planted probability of `she` by occupation."""
    construction: Construction
    """Vector and layer of the refusal of `constructed`."""
    checkpoints: Mapping[str, Measured]
    claims: Mapping[str, bool]
    """Which claims about the checkpoints this seed meets."""

    def write(self, file: Path) -> None:
        """Write as JSON."""
        content = {"format_version": FORMAT_VERSION, **asdict(self)}
        file.write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def read(cls, file: Path) -> "Truth":
        """Read what `write` wrote.

        Raises: OutputError for another format version.
        """
        content: dict[str, Any] = json.loads(file.read_text())
        version = content.pop("format_version")
        if version != FORMAT_VERSION:
            raise OutputError(
                f"{file} has format version {version}, expected {FORMAT_VERSION}: train it again"
            )
        content["planted"] = Planted(**content["planted"])
        content["construction"] = Construction(**content["construction"])
        for name, found in content["checkpoints"].items():
            found["rates"] = {key: Rate(**value) for key, value in found["rates"].items()}
            content["checkpoints"][name] = Measured(**found)
        return cls(**content)


@cache
def truth() -> Truth:
    """The ground truth of the shipped checkpoints."""
    return Truth.read(WEIGHTS / "truth.json")

"""A strength that was measured to do so much, kept with the direction it belongs to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from steerkit.errors import DirectionError
from steerkit.statistics import Estimate

VERSION = 1


@dataclass(frozen=True)
class CalibratedStrength:
    """What one strength of one operator was measured to do, with what it takes to measure again.

    Attributes:
        strength: signed, as the operator takes it.
        operator: `add`, `ablate`, ...
        settings: what else the operator takes, as plain JSON values.
        positions: the position rule.
        sites: where it acts.
        quantity: `kl`, or an objective's name.
        statistic: `mean` or `p95` over answer tokens (of a KL), `change` (of an objective).
        unit: unit of goal and achieved value.
        goal: the budget or target that was asked for.
        achieved: the quantity on prompts that had no part in finding the strength.
        status: see `searches.calibration_roots.Root`.
        aim: `induce` or `reduce`: the sign of an objective's change.
        prompts_sha256: hash of all prompts given, before they were split.
        fraction: the part of the prompts that the strength was fitted on.
        seed: of the split and the intervals.
        max_new_tokens: longest answer of the plain model over which KL was taken.
        version: of this record.
    """

    strength: float
    operator: str
    settings: Mapping[str, Any]
    positions: str
    sites: tuple[str, ...]
    quantity: str
    statistic: str
    unit: str
    goal: float
    achieved: Estimate
    status: str
    aim: str
    prompts_sha256: str
    fraction: float
    seed: int
    max_new_tokens: int
    version: int = field(default=VERSION)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            **self.__dict__,
            "settings": dict(self.settings),
            "sites": list(self.sites),
            "achieved": self.achieved.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "CalibratedStrength":
        """The inverse of `to_json`.

        Raises:
            DirectionError: a record of a later version.
        """
        if data.get("version", 1) > VERSION:
            raise DirectionError(
                f"a strength calibration of version {data['version']} is newer than this "
                f"steerkit, which reads up to {VERSION}: upgrade steerkit"
            )
        return cls(
            **{
                **data,
                "sites": tuple(data["sites"]),
                "achieved": Estimate(**data["achieved"]),
            }
        )

    def __str__(self) -> str:
        return (
            f"{self.operator} x{self.strength:.3g} ({self.positions}): {self.quantity} "
            f"{self.statistic} {self.achieved} {self.unit}, goal {self.goal:g}, {self.status}"
        )

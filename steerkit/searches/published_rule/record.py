"""Evaluation records of the refusal-direction paper: one candidate's three scores, read from JSON.

A record's layer l is the *input* of block l: `resid_pre@l`, the same stream as
`resid_post@(l - 1)`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerkit.errors import MethodError, OutputError
from steerkit.site import Site

ALIASES: Mapping[str, tuple[str, ...]] = {
    "position": ("position", "pos", "token_position"),
    "layer": ("layer",),
    "refusal_score": ("refusal_score", "refusal", "bypass_score", "bypass", "ablation_score"),
    "steering_score": ("steering_score", "steering", "induce_score", "induce", "add_score"),
    "kl_div_score": ("kl_div_score", "kl_div", "kl_score", "kl_divergence", "kl"),
}
"""A record's fields, and the names under which they are read; the first is written."""
SCORES = tuple(ALIASES)[2:]
"""The fields that are scores."""


@dataclass(frozen=True)
class Record:
    """One candidate's scores.

    Attributes:
        position: token index from the prompt's end (-1 is the last), or a rule's name.
        layer: the block whose input the direction was read at.
        refusal_score: bypass, log-odds of refusing harmful prompts when ablated; lower is better.
        steering_score: induce, log-odds of refusing harmless prompts when added.
        kl_div_score: nats on harmless prompts when ablated.
    """

    position: int | str
    layer: int
    refusal_score: float
    steering_score: float
    kl_div_score: float

    @property
    def site(self) -> Site:
        """The input of the block."""
        return Site(self.layer, "resid_pre")

    @classmethod
    def read(cls, row: Mapping[str, Any], number: int = 0) -> "Record":
        """Read a mapping under any of the known names; None is no number.

        Raises:
            MethodError: a field that is missing, or is not what it should be.
        """
        lower = {str(k).lower(): v for k, v in row.items()}
        found: dict[str, Any] = {}
        for name, names in ALIASES.items():
            given = [lower[n] for n in names if n in lower]
            if not given:
                raise MethodError(
                    f"record {number} has no {name} (also read as {', '.join(names[1:]) or name}); "
                    f"its fields are {', '.join(map(str, row)) or 'none'}"
                )
            found[name] = given[0]
        try:
            layer = int(found["layer"])
            scores = [float("nan") if found[n] is None else float(found[n]) for n in SCORES]
        except (TypeError, ValueError) as error:
            raise MethodError(
                f"record {number} has a layer or score that is no number: {dict(row)}"
            ) from error
        return cls(found["position"], layer, *scores)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, with the names of the published records."""
        return dict(vars(self))

    def __str__(self) -> str:
        return (
            f"position {self.position}, layer {self.layer} (bypass {self.refusal_score:.3g}, "
            f"induce {self.steering_score:.3g}, KL {self.kl_div_score:.3g})"
        )


def read_records(path: Path) -> list[Mapping[str, Any]]:
    """Records from JSON: a list, or an object with `records`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise OutputError(f"{path} is not JSON: {error}") from error
    rows = data.get("records") if isinstance(data, dict) else data
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise MethodError(
            f"{path} holds no list of records; expected [{{'position': -1, 'layer': 0, ...}}, ...]"
        )
    return rows

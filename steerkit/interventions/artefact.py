"""Interventions as files: their directions and operators, as safetensors with a JSON header."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerkit.batch import Positions
from steerkit.direction import Direction
from steerkit.errors import OutputError
from steerkit.files import read_tensors, write_tensors
from steerkit.interventions.gated import Gated
from steerkit.interventions.in_order import InOrder
from steerkit.interventions.operator import Operator, from_settings
from steerkit.interventions.when import When
from steerkit.protocols import Intervention, Model
from steerkit.site import Site

KIND = "steering"

Steering = Operator | Gated | InOrder
"""What a file can hold."""


def save_steering(path: str | Path, interventions: Intervention | Sequence[Intervention]) -> Path:
    """Write interventions that act together as one file.

    Tensors: `units [direction d_model]`, where there are directions, and of operator N, counted
    through conditions and sequences, `mask.N [prompt pos]` where it has a token mask and
    `NAME.N` for each tensor of its own. The header holds each direction's and operator's
    numbers; `gated` and `in_order` hold entries in turn.

    Raises:
        OutputError: nothing to save, an intervention of a foreign type, an unwritable place.
    """
    listed = list(interventions) if isinstance(interventions, Sequence) else [interventions]
    if not listed:
        raise OutputError("there are no interventions to save")
    writer = _Writer()
    entries = [writer.entry(intervention) for intervention in listed]
    if writer.directions:
        writer.tensors["units"] = torch.stack([d.unit for d in writer.directions])
    header = {"directions": [d.to_json() for d in writer.directions], "interventions": entries}
    return write_tensors(Path(path), KIND, writer.tensors, header)


def load_steering(
    path: str | Path, *, model: Model | None = None, force: bool = False
) -> tuple[Steering, ...]:
    """Read interventions; with `model`, refuse directions that were taken on another.

    Raises:
        OutputError: not such a file, or not a complete one.
        DirectionError: another model, unless forced.
    """
    tensors, header = read_tensors(Path(path), KIND)
    try:
        units = tensors["units"] if header["directions"] else ()
        directions = [
            Direction.from_json(unit, entry)
            for unit, entry in zip(units, header["directions"], strict=True)
        ]
        reader = _Reader(directions, tensors)
        loaded = tuple(reader.read(entry) for entry in header["interventions"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise OutputError(
            f"{path} is not a complete steering file: its header lacks or garbles {error}; "
            "write it again"
        ) from error
    if model is not None:
        for operator in loaded:
            for direction in operator.directions:
                direction.check(model.info, force=force)
    return loaded


def rebuilt(
    intervention: Steering,
    *,
    strength: float | None = None,
    on: Callable[[Direction], Direction] = lambda direction: direction,
) -> Steering:
    """The same intervention at another strength, or with each direction replaced by `on` of it.

    A strength counts for every part of a sequence.
    """
    if isinstance(intervention, Gated):
        condition = replace(intervention.condition, direction=on(intervention.condition.direction))
        inner: Any = rebuilt(intervention.intervention, strength=strength, on=on)  # type: ignore[arg-type]
        return Gated(inner, condition)
    if isinstance(intervention, InOrder):
        parts: Any = [rebuilt(part, strength=strength, on=on) for part in intervention.parts]  # type: ignore[arg-type]
        return InOrder(*parts)
    return from_settings(
        intervention.name,
        [on(direction) for direction in intervention.directions],
        {**intervention.settings, **intervention.tensors},
        strength=intervention.strength if strength is None else strength,
        positions=intervention.positions,
        sites=intervention.sites,
    )


@dataclass
class _Writer:
    """Collects directions and tensors while entries are written, and counts operators."""

    directions: list[Direction] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    operators: int = 0

    def entry(self, intervention: Any) -> dict[str, Any]:
        """The header's entry of one intervention."""
        if isinstance(intervention, Gated):
            return {
                "gated": self.entry(intervention.intervention),
                "when": intervention.condition.to_json(),
                "direction": self._numbers([intervention.condition.direction])[0],
            }
        if isinstance(intervention, InOrder):
            return {"in_order": [self.entry(part) for part in intervention.parts]}
        if not isinstance(intervention, Operator):
            raise OutputError(
                f"only steerkit's own operators can be saved, got a {type(intervention).__name__}; "
                "save its direction instead"
            )
        n = self.operators
        self.operators += 1
        if intervention.positions.mask is not None:
            self.tensors[f"mask.{n}"] = intervention.positions.mask
        self.tensors |= {f"{name}.{n}": tensor for name, tensor in intervention.tensors.items()}
        return {
            "operator": intervention.name,
            "settings": intervention.settings,
            "tensors": sorted(intervention.tensors),
            "strength": intervention.strength,
            "rule": intervention.positions.rule,
            "indices": list(intervention.positions.indices),
            "sites": [str(site) for site in intervention.sites],
            "directions": self._numbers(intervention.directions),
        }

    def _numbers(self, directions: Sequence[Direction]) -> list[int]:
        first = len(self.directions)
        self.directions += directions
        return list(range(first, len(self.directions)))


@dataclass
class _Reader:
    """Makes interventions of entries, in the order in which they were written."""

    directions: Sequence[Direction]
    tensors: Mapping[str, Tensor]
    operators: int = 0

    def read(self, entry: Mapping[str, Any]) -> Steering:
        """One intervention."""
        if "gated" in entry:
            inner: Any = self.read(entry["gated"])
            return Gated(inner, When(self.directions[entry["direction"]], **entry["when"]))
        if "in_order" in entry:
            parts: Any = [self.read(part) for part in entry["in_order"]]
            return InOrder(*parts)
        n = self.operators
        self.operators += 1
        own = {name: self.tensors[f"{name}.{n}"] for name in entry.get("tensors", ())}
        return from_settings(
            entry["operator"],
            [self.directions[j] for j in entry["directions"]],
            {**entry["settings"], **own},
            strength=entry["strength"],
            positions=Positions(
                entry["rule"], tuple(entry["indices"]), self.tensors.get(f"mask.{n}")
            ),
            sites=[Site.parse(site) for site in entry["sites"]],
        )

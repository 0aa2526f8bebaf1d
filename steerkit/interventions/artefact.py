"""Interventions as files: their directions and operators, as safetensors with a JSON header."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerkit.batch import Positions
from steerkit.direction import Direction
from steerkit.errors import OutputError
from steerkit.files import read_tensors, write_tensors
from steerkit.interventions.operator import Operator, from_settings
from steerkit.protocols import Intervention, Model
from steerkit.site import Site

KIND = "steering"


def save_steering(path: str | Path, interventions: Intervention | Sequence[Intervention]) -> Path:
    """Write interventions that act together as one file.

    Tensors: `units [direction d_model]`, and `mask.N [prompt pos]` where intervention N has
    a token mask. The header holds each direction's and operator's numbers.

    Raises:
        OutputError: nothing to save, an intervention of a foreign type, an unwritable place.
    """
    listed = list(interventions) if isinstance(interventions, Sequence) else [interventions]
    if not listed:
        raise OutputError("there are no interventions to save")
    directions: list[Direction] = []
    entries: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for i, operator in enumerate(listed):
        if not isinstance(operator, Operator):
            raise OutputError(
                f"only steerkit's own operators can be saved, got a {type(operator).__name__}; "
                "save its direction instead"
            )
        first = len(directions)
        directions += operator.directions
        if operator.positions.mask is not None:
            tensors[f"mask.{i}"] = operator.positions.mask
        entries.append(
            {
                "operator": operator.name,
                "settings": operator.settings,
                "strength": operator.strength,
                "rule": operator.positions.rule,
                "indices": list(operator.positions.indices),
                "sites": [str(site) for site in operator.sites],
                "directions": list(range(first, len(directions))),
            }
        )
    tensors["units"] = torch.stack([d.unit for d in directions])
    header = {"directions": [d.to_json() for d in directions], "interventions": entries}
    return write_tensors(Path(path), KIND, tensors, header)


def load_steering(
    path: str | Path, *, model: Model | None = None, force: bool = False
) -> tuple[Operator, ...]:
    """Read interventions; with `model`, refuse directions that were taken on another.

    Raises:
        OutputError: not such a file, or not a complete one.
        DirectionError: another model, unless forced.
    """
    tensors, header = read_tensors(Path(path), KIND)
    try:
        loaded = _operators(tensors, header)
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


def _operators(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> tuple[Operator, ...]:
    directions = [
        Direction.from_json(unit, entry)
        for unit, entry in zip(tensors["units"], header["directions"], strict=True)
    ]
    return tuple(
        from_settings(
            entry["operator"],
            [directions[j] for j in entry["directions"]],
            entry["settings"],
            strength=entry["strength"],
            positions=Positions(entry["rule"], tuple(entry["indices"]), tensors.get(f"mask.{i}")),
            sites=[Site.parse(site) for site in entry["sites"]],
        )
        for i, entry in enumerate(header["interventions"])
    )

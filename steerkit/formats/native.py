"""steerkit's own files, so that converting goes both ways."""

from collections.abc import Sequence
from pathlib import Path

from steerkit.direction import KIND, Directions
from steerkit.errors import OutputError, SteerkitError
from steerkit.files import read_header
from steerkit.formats.format import FORMATS, Asked, Draft, Outgoing, additions
from steerkit.formats.outgoing import outgoing
from steerkit.formats.vectors import FileVector, Found
from steerkit.interventions import Ablate, Add, Operator, load_steering, save_steering
from steerkit.interventions.artefact import KIND as STEERING


class OwnDirections:
    """Directions in safetensors with a JSON header: `Directions.save`."""

    summary = "steerkit's own directions (safetensors)"
    folder = False

    def recognises(self, path: Path) -> bool:
        """By its header."""
        return _is(path, KIND)

    def read(self, path: Path, asked: Asked) -> Found:
        """Every direction, as it was."""
        directions = Directions.load(path)
        vectors = tuple(
            FileVector(d.vector, d.site, f"direction {i} ({d})", "our own", direction=d)
            for i, d in enumerate(directions)
        )
        return Found("steerkit", vectors, model_hint=directions[0].model.model_type)

    def write(self, items: Sequence[Outgoing], path: Path) -> Draft:
        """Directions as they are; a strength belongs to an operator, not to them."""
        additions(items, "steerkit")
        if any(item.strength != 1 for item in items):
            raise OutputError("directions have no strength of their own; use the format 'steering'")
        made = Directions(tuple(item.direction.at(item.site) for item in items)).save(path)
        return Draft((made,), tuple(range(len(items))))


class OwnSteering:
    """Interventions in safetensors with a JSON header: `save_steering`."""

    summary = "steerkit's own interventions (safetensors)"
    folder = False

    def recognises(self, path: Path) -> bool:
        """By its header."""
        return _is(path, STEERING)

    def read(self, path: Path, asked: Asked) -> Found:
        """Additions and set projections, one for each site."""
        items, losses = outgoing(load_steering(path))
        vectors = tuple(
            FileVector(
                values=item.direction.vector,
                site=item.site,
                name=f"direction {i} ({item.direction})",
                convention="our own",
                coefficient=item.strength,
                action=item.action,
                value=item.value,
                direction=item.direction,
            )
            for i, item in enumerate(items)
        )
        hint = items[0].direction.model.model_type
        return Found("steering", vectors, hint, tuple(str(loss) for loss in losses))

    def write(self, items: Sequence[Outgoing], path: Path) -> Draft:
        """One operator each, at every token."""
        made: list[Operator] = [
            Add(item.direction, item.strength, sites=item.site)
            if item.action == "add"
            else Ablate(item.direction, item.value, sites=item.site)
            for item in items
        ]
        return Draft((save_steering(path, made),), tuple(range(len(items))))


FORMATS.register("steerkit")(OwnDirections())
FORMATS.register("steering")(OwnSteering())


def _is(path: Path, kind: str) -> bool:
    try:
        return bool(read_header(path, kind))
    except SteerkitError:
        return False

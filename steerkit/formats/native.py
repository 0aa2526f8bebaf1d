"""steerkit's own files, so that converting goes both ways."""

from collections.abc import Sequence
from pathlib import Path

from steerkit.direction import KIND, Directions
from steerkit.errors import OutputError, SteerkitError
from steerkit.files import read_header
from steerkit.formats.format import FORMATS, Asked, Draft, Outgoing, only_additions
from steerkit.formats.vectors import FileVector, Found


class Native:
    """Directions in safetensors with a JSON header: `Directions.save`."""

    summary = "steerkit's own directions (safetensors)"

    def recognises(self, path: Path) -> bool:
        """By its header."""
        try:
            return bool(read_header(path, KIND))
        except SteerkitError:
            return False

    def read(self, path: Path, asked: Asked) -> Found:
        """Every direction, as it was."""
        directions = Directions.load(path)
        return Found(
            "steerkit",
            tuple(
                FileVector(d.vector, d.site, f"direction {i} ({d})", "our own", direction=d)
                for i, d in enumerate(directions)
            ),
            model_hint=directions[0].model.model_type,
        )

    def write(self, items: Sequence[Outgoing], path: Path) -> Draft:
        """Directions as they are; a strength belongs to an operator, not to them."""
        only_additions(items, "directions of steerkit")
        if any(item.strength != 1 for item in items):
            raise OutputError(
                "directions have no strength of their own; save operators with "
                "steerkit.interventions.save_steering"
            )
        made = Directions(tuple(item.direction.at(item.site) for item in items)).save(path)
        return Draft((made,), tuple(range(len(items))))


FORMATS.register("steerkit")(Native())

"""Read and write other tools' files of steering vectors."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steerkit.direction import Directions
from steerkit.errors import OutputError
from steerkit.formats.format import FORMATS, Asked, Loss
from steerkit.formats.outgoing import Vectors, outgoing
from steerkit.formats.vectors import Found, direction_of, folded, one_each, outdated
from steerkit.interventions import Ablate, Add, Operator
from steerkit.protocols import Model
from steerkit.site import Site


@dataclass(frozen=True)
class Written:
    """What was written, and what was not.

    Attributes:
        format: the format's name.
        paths: the files.
        sites: of the vectors that are in them.
        conversions: how places were restated in the format's own terms.
        losses: what the files do not hold; those `dropped` are whole vectors.
    """

    format: str
    paths: tuple[Path, ...]
    sites: tuple[Site, ...]
    conversions: tuple[str, ...]
    losses: tuple[Loss, ...]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "format": self.format,
            "files": [str(path) for path in self.paths],
            "sites": [str(site) for site in self.sites],
            "conversions": list(self.conversions),
            "losses": [vars(loss) for loss in self.losses],
        }

    def summary(self) -> str:
        """What was written in one line, then one line for each conversion and loss."""
        lines = [
            f"{len(self.sites)} vectors as {self.format}: {', '.join(map(str, self.paths))}",
            *(f"converted: {text}" for text in self.conversions),
            *(f"{'DROPPED' if loss.dropped else 'lost'}: {loss}" for loss in self.losses),
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Written({self.summary()})"


def read_vectors(
    path: str | Path,
    format: str | None = None,
    *,
    model: Model | None = None,
    at: Site | str | int | None = None,
    force: bool = False,
) -> Directions:
    """Read another tool's steering vectors as directions at our sites.

    A direction's vector, scale x unit, is the file's vector: bit for bit where steerkit wrote
    the file, else to one float32 rounding. Where steerkit did not write it, the class means
    are unknown (NaN; operators that need them refuse) and the polarity is 0, never checked.
    `provenance["read_from"]` says what the file's own numbering means.

    Args:
        path: a file or folder.
        format: a name of `FORMATS`; told from the file by default.
        model: the model that the file is for. Most files do not say it: the directions are
            then this model's, because the caller says so. Without it they belong to no
            known model and have to be used with `force`.
        at: the site of a lone vector whose file does not say it.
        force: accept a file that steerkit wrote for another model of this width.

    Raises:
        OutputError: an unknown format, or a file that cannot be trusted.
        DirectionError: vectors that are zero, not finite, or of another width or model.
    """
    return opened(path, format, model=model, at=at, force=force)[1]


def read_steering(
    path: str | Path,
    format: str | None = None,
    *,
    model: Model | None = None,
    at: Site | str | int | None = None,
    force: bool = False,
) -> tuple[Operator, ...]:
    """Read a file as the interventions that its own tool would make of it.

    `Add` at the file's coefficient at every token, or `Ablate` to the value that a projection
    is set to. Arguments and errors are those of `read_vectors`.
    """
    return acting(*opened(path, format, model=model, at=at, force=force))


def acting(found: Found, directions: Directions) -> tuple[Operator, ...]:
    """What a file's own tool would do with its vectors, one operator each."""
    made: list[Operator] = []
    for vector, direction in zip(found.vectors, directions, strict=True):
        # What steerkit kept names the site as it was; the file's own is the same stream.
        site = direction.site if vector.direction is None else vector.site
        if vector.action == "set":
            made.append(Ablate(direction, reference=vector.value, sites=site))
        else:
            strength = vector.coefficient * folded(vector)
            made.append(Add(direction, strength=strength, sites=site))
    return tuple(made)


def opened(
    path: str | Path,
    format: str | None = None,
    *,
    model: Model | None = None,
    at: Site | str | int | None = None,
    force: bool = False,
) -> tuple[Found, Directions]:
    """What a file holds, as it says it and as directions; what is odd about it is warned of."""
    path = Path(path)
    name = format or _told(path)
    info = model.info if model is not None else None
    if not path.exists():
        raise OutputError(f"there is nothing at {path}")
    found = FORMATS[name].read(path, Asked(info, None if at is None else Site.parse(at)))
    one_each(found.vectors)
    directions = Directions(tuple(direction_of(v, found, info) for v in found.vectors))
    edited = [v.name for v in found.vectors if outdated(v)]
    if edited:
        told = f"{', '.join(edited)} changed since steerkit wrote the file: read by its values"
        found = replace(found, warnings=(*found.warnings, told))
    for text in found.warnings:
        warnings.warn(f"{path}: {text}", stacklevel=3)
    if info is not None:
        for direction in directions:
            direction.check(info, force=force)
    return found, directions


def write_vectors(vectors: Vectors, path: str | Path, format: str | None = None) -> Written:
    """Write directions or operators in another tool's format, and say what is lost.

    Args:
        vectors: directions, added at strength 1; or operators, with their strength and sites.
        path: a file, or a folder where the format is one.
        format: a name of `FORMATS`; by default what the ending says, where it says it.

    Returns:
        What was written. A vector that the format cannot hold is left out with a warning.

    Raises:
        OutputError: nothing of it can be written, or the place cannot be written to.
        InterventionError: an operator that no foreign format has.
        DirectionError: two vectors for one place.
    """
    path = Path(path)
    name = format or named(path)
    items, losses = outgoing(vectors)
    draft = FORMATS[name].write(items, path)
    losses += draft.losses
    held = [items[i] for i in draft.kept]
    if name not in ("steerkit", "steering") and any(any(item.direction.examples) for item in held):
        losses.append(Loss("example prompts", "not put into a file that is made to be shared"))
    for loss in losses:
        if loss.dropped:
            warnings.warn(f"not in {path}: {loss}", stacklevel=2)
    return Written(name, draft.paths, tuple(i.site for i in held), draft.conversions, tuple(losses))


def _told(path: Path) -> str:
    """The one format that recognises a path."""
    found = [name for name in FORMATS if FORMATS[name].recognises(path)]
    if not path.exists():
        raise OutputError(f"there is nothing at {path}")
    if len(found) != 1:
        what = f"could be {' or '.join(found)}" if found else "does not say its kind"
        raise OutputError(f"{path} {what}; say which with format=, one of {', '.join(FORMATS)}")
    return found[0]


def named(path: Path) -> str:
    """The format that an ending stands for."""
    by_ending = {".gguf": "gguf", ".safetensors": "steerkit"}
    if path.suffix not in by_ending:
        raise OutputError(
            f"'{path.name}' does not say its format; say which with format=, one of "
            f"{', '.join(FORMATS)}"
        )
    return by_ending[path.suffix]

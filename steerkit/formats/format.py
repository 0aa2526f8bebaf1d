"""A format: one file of this folder, which says how it is told, read and written."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from steerkit.direction import Direction
from steerkit.errors import OutputError
from steerkit.formats.vectors import Action, Found
from steerkit.protocols import ModelInfo
from steerkit.registry import Registry
from steerkit.site import Site


@dataclass(frozen=True)
class Asked:
    """What the caller knows and the file may not.

    Attributes:
        info: the model that the file is for.
        at: the site of a lone vector whose file does not say it.
    """

    info: ModelInfo | None = None
    at: Site | None = None


@dataclass(frozen=True, eq=False)
class Outgoing:
    """One vector to be written: what is done with a direction at a site.

    Attributes:
        direction: the direction.
        site: where it acts.
        strength: for `add`, in multiples of the direction's scale.
        action: `add`, or `set` its projection.
        value: for `set`, the projection, in activation units.
    """

    direction: Direction
    site: Site
    strength: float = 1.0
    action: Action = "add"
    value: float = 0.0

    @property
    def values(self) -> Float[Tensor, "d_model"]:
        """What is added, strength included."""
        return self.direction.unit * (self.direction.scale * self.strength)


@dataclass(frozen=True)
class Loss:
    """Something that a format cannot hold.

    Attributes:
        what: what is lost, such as `resid_mid@3` or `example prompts`.
        why: the reason, and what was done instead.
        dropped: a whole vector is missing from the file, not only a note about it.
    """

    what: str
    why: str
    dropped: bool = False

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


@dataclass(frozen=True)
class Draft:
    """What a format did with what it was given.

    Attributes:
        paths: the files that were written.
        kept: which of the given vectors are in them, by index.
        conversions: how sites were restated.
        losses: what the files do not hold.
    """

    paths: tuple[Path, ...]
    kept: tuple[int, ...]
    conversions: tuple[str, ...] = ()
    losses: tuple[Loss, ...] = ()


class Format(Protocol):
    """How files of one kind are told, read and written."""

    @property
    def summary(self) -> str:
        """One line for help texts."""
        ...

    @property
    def folder(self) -> bool:
        """Whether a path without an ending is written as a folder."""
        ...

    def recognises(self, path: Path) -> bool:
        """Whether the path looks like a file (or folder) of this kind.

        Raises:
            OutputError: it has the ending of one, and opening it could do harm.
        """
        ...

    def read(self, path: Path, asked: Asked) -> Found:
        """All vectors of a file.

        Raises:
            OutputError: the file cannot be trusted.
            DirectionError: what it holds are not vectors.
        """
        ...

    def write(self, items: Sequence[Outgoing], path: Path) -> Draft:
        """Write what the format can hold, whole or not at all.

        Raises:
            OutputError: nothing of it can be held, or the place cannot be written to.
        """
        ...


FORMATS: Registry[Format] = Registry("format", "steerkit.formats", OutputError)
"""Formats by name."""


def block_output(site: Site) -> int | None:
    """The block whose output carries this site, None where that is no block's output.

    What is added to the input of block l > 0 is added to the output of block l - 1.

    >>> block_output(Site(4)), block_output(Site(4, "resid_pre")), block_output(Site(4, "mlp_out"))
    (4, 3, None)
    """
    if site.stream == "resid_post":
        return site.layer
    if site.stream == "resid_pre" and site.layer:
        return site.layer - 1
    return None


def block_input(site: Site, n_layers: int) -> int | None:
    """The block whose input carries this site, None where that is no block's input.

    >>> block_input(Site(4), 6), block_input(Site(4, "resid_pre"), 6), block_input(Site(5), 6)
    (5, 4, None)
    """
    if site.stream == "resid_pre":
        return site.layer
    if site.stream == "resid_post" and site.layer + 1 < n_layers:
        return site.layer + 1
    return None


def additions(items: Sequence[Outgoing], name: str) -> list[str]:
    """Refuse anything but addition; say which strengths become part of the vector.

    Raises:
        OutputError: naming what cannot be written.
    """
    for item in items:
        if item.action != "add":
            raise OutputError(
                f"{name} files hold vectors that are added; setting the projection at {item.site} "
                "cannot be written there. Formats that can: lm_eval, steering"
            )
    return [
        f"strength {item.strength:g} at {item.site} is multiplied into the vector"
        for item in items
        if item.strength != 1
    ]


def nothing_left(losses: Sequence[Loss], name: str) -> OutputError:
    """The error for a file that would hold nothing."""
    return OutputError(
        f"nothing of this can be written as {name}: {'; '.join(str(loss) for loss in losses)}"
    )

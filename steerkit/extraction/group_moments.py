"""Sufficient statistics by class and group, which parts of a dataset sum apart and join."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.errors import ActivationError
from steerkit.extraction.class_moments import ClassMoments
from steerkit.extraction.moments import Moments
from steerkit.files import read_tensors, write_tensors
from steerkit.protocols import ModelInfo
from steerkit.registry import suggest
from steerkit.site import Site

KIND = "group moments"
Cell = tuple[str, str]
"""A class and a group, by name; one empty group where there are none."""
FIELDS = ("mean", "scatter", "skew")


@dataclass(eq=False)
class GroupMoments:
    """Counts, means and moments of the rows of every class and group at several sites, float64.

    Any two of its classes make a direction (`between`), over all groups or over some of them:
    leaving groups out needs no second pass. Memory: 8 d_model^2 bytes a site and cell.

    Attributes:
        sites: the sites, in forward order.
        info: the model that the rows come from.
        pooling: how tokens became rows.
        cells: moments at each site, by class and group.
        datasets: fingerprints of the datasets summed.
    """

    sites: tuple[Site, ...]
    info: ModelInfo
    pooling: str
    cells: dict[Cell, list[ClassMoments]] = field(default_factory=dict)
    datasets: tuple[str, ...] = ()

    def update(
        self,
        values: Float[Tensor, "row site d_model"],
        labels: Sequence[str],
        groups: Sequence[str],
    ) -> None:
        """Add rows that were not added before.

        Raises:
            ActivationError: another width or number of sites, or NaN. Nothing is added then.
        """
        expected = (len(labels), len(self.sites), self.info.d_model)
        if tuple(values.shape) != expected or len(groups) != len(labels):
            raise ActivationError(
                f"rows have shape {tuple(values.shape)} with {len(labels)} classes and "
                f"{len(groups)} groups, expected {expected}"
            )
        if not bool(torch.isfinite(values).all()):
            row, place = (~torch.isfinite(values).all(2)).nonzero()[0].tolist()
            raise ActivationError(
                f"row {row} at {self.sites[place]} is NaN or infinite; load the model in a wider "
                "dtype"
            )
        rows: dict[Cell, list[int]] = {}
        for row, cell in enumerate(zip(labels, groups, strict=True)):
            rows.setdefault(cell, []).append(row)
        for cell, mine in rows.items():
            # A column at a time: all of them in float64 would take twice the rows' memory.
            new = [
                ClassMoments.of(values[mine, place].double()) for place in range(len(self.sites))
            ]
            old = self.cells.get(cell)
            self.cells[cell] = (
                new if old is None else [a + b for a, b in zip(old, new, strict=True)]
            )

    def merge(self, other: "GroupMoments") -> "GroupMoments":
        """The moments of both, summed apart; the order does not matter but for rounding.

        Raises:
            ActivationError: other sites, another model or pooling.
        """
        mine, theirs = ((m.sites, m.info.fingerprint, m.pooling) for m in (self, other))
        if mine != theirs:
            raise ActivationError(
                f"moments merge where sites, model and pooling agree; got {other!r} beside {self!r}"
            )
        cells = dict(self.cells)
        for cell, parts in other.cells.items():
            old = cells.get(cell)
            cells[cell] = parts if old is None else [a + b for a, b in zip(old, parts, strict=True)]
        datasets = tuple(dict.fromkeys(self.datasets + other.datasets))
        return GroupMoments(self.sites, self.info, self.pooling, cells, datasets)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, sorted."""
        return tuple(sorted({label for label, _ in self.cells}))

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups, sorted."""
        return tuple(sorted({group for _, group in self.cells}))

    @property
    def counts(self) -> dict[Cell, int]:
        """Rows of every class and group."""
        return {cell: self.cells[cell][0].n for cell in sorted(self.cells)}

    def between(
        self,
        positive: str,
        negative: str,
        *,
        groups: Iterable[str] | None = None,
        without: Iterable[str] = (),
    ) -> Moments:
        """What `extract_from_moments` needs to tell two classes apart.

        Args:
            positive: a class.
            negative: another.
            groups: only these; all by default.
            without: all but these, such as a category to be held out.

        Raises:
            ActivationError: a class or group without rows.
        """
        for label in (positive, negative):
            if label not in self.classes:
                raise ActivationError(f"no rows of class '{label}'; {suggest(label, self.classes)}")
        asked = self.groups if groups is None else tuple(groups)
        for group in (*asked, *without):
            if group not in self.groups:
                raise ActivationError(f"no rows of group '{group}'; {suggest(group, self.groups)}")
        kept = [group for group in asked if group not in set(without)]
        sides = [
            [self.cells[c] for c in sorted(self.cells) if c[0] == label and c[1] in kept]
            for label in (negative, positive)
        ]
        none = ClassMoments.none(self.info.d_model)
        parts = [
            [sum((cell[place] for cell in side), none) for side in sides]
            for place in range(len(self.sites))
        ]
        return Moments(self.sites, self.info, self.pooling, parts, None, self.datasets)

    def save(self, path: str | Path, about: Mapping[str, Any] | None = None) -> Path:
        """Write one safetensors file with a JSON header; `about` is kept in it."""
        every = [part for cell in sorted(self.cells) for part in self.cells[cell]]
        empty = torch.empty(0, dtype=torch.float64)
        tensors = {
            name: torch.stack([getattr(part, name) for part in every]) if every else empty
            for name in FIELDS
        }
        tensors["fourth"] = torch.tensor([part.fourth for part in every], dtype=torch.float64)
        header = {
            "sites": [str(site) for site in self.sites],
            "info": self.info.to_json(),
            "pooling": self.pooling,
            "cells": [[*cell, self.cells[cell][0].n] for cell in sorted(self.cells)],
            "datasets": list(self.datasets),
            "about": dict(about or {}),
        }
        return write_tensors(Path(path), KIND, tensors, header)

    @classmethod
    def load(cls, path: str | Path) -> "GroupMoments":
        """Read a file written by `save`."""
        return read(path)[0]

    def summary(self) -> str:
        """A line a class, with its rows in every group."""
        counts = self.counts
        lines = [repr(self)]
        for label in self.classes:
            held = {g: n for (c, g), n in counts.items() if c == label}
            shown = ", ".join(f"{g} {n:,}" for g, n in held.items() if g)
            lines.append(f"  {label}: {sum(held.values()):,} rows{f' ({shown})' if shown else ''}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        rows = sum(self.counts.values())
        named = f", {len(self.groups)} groups" if self.groups not in ((), ("",)) else ""
        return (
            f"GroupMoments({rows:,} rows, {len(self.classes)} classes{named}, {len(self.sites)} "
            f"sites, pooling '{self.pooling}', {self.info.name})"
        )


def read(path: str | Path) -> tuple[GroupMoments, dict[str, Any]]:
    """A file written by `GroupMoments.save`, and what was kept in it."""
    tensors, header = read_tensors(Path(path), KIND)
    sites = tuple(Site.parse(site) for site in header["sites"])
    cells: dict[Cell, list[ClassMoments]] = {}
    for i, (label, group, n) in enumerate(header["cells"]):
        cells[label, group] = [
            ClassMoments(
                n,
                tensors["mean"][k],
                tensors["scatter"][k],
                tensors["skew"][k],
                float(tensors["fourth"][k]),
            )
            for k in range(i * len(sites), (i + 1) * len(sites))
        ]
    info = ModelInfo.from_json(header["info"])
    found = GroupMoments(sites, info, header["pooling"], cells, tuple(header["datasets"]))
    return found, header["about"]

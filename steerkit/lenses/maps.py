"""A map of where an effect happens: a value a place and position, over pairs of prompts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerkit.errors import MethodError
from steerkit.lenses.tables import html_table, markdown
from steerkit.site import Site
from steerkit.statistics import Estimate, Floats, group_codes, percentiles, row_draws

RESAMPLES = 1000


@dataclass(frozen=True, order=True)
class Head:
    """One attention head of one layer, both from 0.

    >>> str(Head(2, 5))
    'head5@2'
    """

    layer: int
    head: int

    def __str__(self) -> str:
        return f"head{self.head}@{self.layer}"


@dataclass(frozen=True)
class Peak:
    """The cell that leads a map on one half of the groups, measured on the other half.

    Attributes:
        place: site or head.
        position: from the end; None where all positions are patched at once.
        estimate: its normalised effect on the half that had no part in choosing it.
        chosen_at: what it was on the half that chose it, which flatters it.
    """

    place: Site | Head
    position: int | None
    estimate: Estimate
    chosen_at: float

    def __str__(self) -> str:
        where = "" if self.position is None else f" position {self.position}"
        return f"{self.place}{where}: {self.estimate}"


@dataclass(frozen=True, eq=False)
class PatchingMap:
    """What moving one state from the clean to the corrupted run does, everywhere.

    The normalised effect of a cell is the mean change of the metric over the mean gap between
    the clean and the corrupted run: 0 is the corrupted run, 1 the clean one. Means come before
    the division, so that pairs with a small gap do not rule. Intervals are of each cell by
    itself; the largest of many cells is flattered (see `peak`).

    Attributes:
        method: `activation patching`, or `attribution patching` (its first-order estimate).
        metric: what was measured, with its `unit`.
        places: sites and heads, in forward order.
        positions: counted from the end, -1 the last prompt token; empty where all positions
            were patched at once.
        labels: tokens that stand at the positions, where all pairs agree.
        raw: the metric of each patched run, `[pair place position]`; NaN where a pair is too
            short. For attribution patching the corrupted run's metric plus the estimate.
        clean: the metric of each clean run, `[pair]`.
        corrupted: the same of the corrupted runs.
        groups: what intervals resample, one a pair.
        items: the two texts of each pair.
        provenance: model, versions, what was skipped.
    """

    method: str
    metric: str
    unit: str
    places: tuple[Site | Head, ...]
    positions: tuple[int, ...]
    labels: tuple[str, ...]
    raw: Floats
    clean: Floats
    corrupted: Floats
    groups: tuple[str, ...]
    items: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        gap, size = float(self._gap.mean()), float(np.abs(self._gap).mean())
        noise = 1e-6 * float(np.abs([self.clean, self.corrupted]).max())
        if size <= noise or abs(gap) <= 1e-9 * size:
            raise MethodError(
                f"the clean and the corrupted runs have the same mean {self.metric} "
                f"({self.clean.mean():.4g} and {self.corrupted.mean():.4g}), so there is nothing "
                "to place; choose answers or prompts between which the model tells"
            )

    @property
    def _gap(self) -> Floats:
        return self.clean - self.corrupted

    @property
    def columns(self) -> tuple[int | None, ...]:
        """The positions; None alone where all were patched at once."""
        return self.positions or (None,)

    @property
    def normalised(self) -> Floats:
        """Effect of each cell, `[place position]`; 0 is the corrupted run, 1 the clean one."""
        return self._ratio(np.ones((len(self.clean), 1)))[..., 0]

    @property
    def effects(self) -> Floats:
        """Mean change of the metric from the corrupted run, `[place position]`, in its unit."""
        present = ~np.isnan(self.raw)
        change = np.where(present, self.raw - self.corrupted[:, None, None], 0.0)
        with np.errstate(invalid="ignore"):
            return change.sum(0) / present.sum(0)

    @cached_property
    def intervals(self) -> Floats:
        """95% interval of each cell's normalised effect, `[place position 2]`.

        Groups are resampled, gap and effect together. NaN for cells of a single group.
        """
        drawn = self._ratio(row_draws(self.groups, n_resamples=RESAMPLES))
        code = group_codes(self.groups)
        out = np.full((*drawn.shape[:2], 2), np.nan)
        for i, j in np.ndindex(*drawn.shape[:2]):
            n = len(set(code[~np.isnan(self.raw[:, i, j])].tolist()))
            values = drawn[i, j][np.isfinite(drawn[i, j])]
            if n > 1 and values.size:
                out[i, j] = percentiles(values, n)
        return out

    @property
    def cells(self) -> dict[tuple[str, int | None], tuple[int, int]]:
        """Where each place and position stands in the arrays."""
        return {
            (str(place), column): (i, j)
            for i, place in enumerate(self.places)
            for j, column in enumerate(self.columns)
        }

    def estimate(self, place: Site | Head | str, position: int | None = None) -> Estimate:
        """The normalised effect at a place (and position) with its interval.

        Raises:
            MethodError: a place or position that the map does not have.
        """
        names = [str(p) for p in self.places]
        if str(place) not in names or position not in self.columns:
            raise MethodError(
                f"this map has no {place} at position {position}; it has {names[0]} to "
                f"{names[-1]} at {self.columns[0]} to {self.columns[-1]}"
            )
        return self._estimate(names.index(str(place)), self.columns.index(position))

    @cached_property
    def certain(self) -> NDArray[np.bool_]:
        """Cells that are 1 by definition, `[place position]`: they locate nothing.

        The last stream at all of a prompt's tokens is the clean run's, and so is every residual
        stream where all positions of pairs of equal length are patched whole.
        """
        out = np.zeros((len(self.places), len(self.columns)), dtype=bool)
        last = int(self.provenance.get("model", {}).get("n_layers", 0)) - 1
        if self.provenance.get("confined_to", 0):
            return out
        level = all(len(i["clean_tokens"]) == len(i["corrupted_tokens"]) for i in self.items)
        for (_, column), (i, j) in self.cells.items():
            place = self.places[i]
            if isinstance(place, Site) and column in (None, -1):
                whole = column is None and level and place.stream.startswith("resid")
                out[i, j] = whole or (place == Site(max(last, 0)) and last >= 0)
        return out

    @property
    def ranked(self) -> list[tuple[Site | Head, int | None, Estimate]]:
        """Every cell with its normalised effect, the largest size first."""
        values = np.nan_to_num(np.abs(self.normalised), nan=-1.0)
        order = np.argsort(-values, axis=None, kind="stable")
        cells = [divmod(int(k), values.shape[1]) for k in order]
        return [(self.places[i], self.columns[j], self._estimate(i, j)) for i, j in cells]

    def peak(self, *, seed: int = 0) -> Peak:
        """The cell with the largest effect, chosen on half of the groups, measured on the rest.

        Cells that are 1 by definition stand aside where there are others.

        Raises:
            MethodError: fewer than four groups, so that a half would be a single one.
        """
        names = sorted(set(self.groups))
        if len(names) < 4:
            raise MethodError(
                f"a peak is chosen and measured on different groups; {len(names)} groups are too "
                "few, give pairs of at least 4"
            )
        np.random.default_rng(seed).shuffle(names)
        first = set(names[: len(names) // 2])
        chooses = np.array([g in first for g in self.groups])
        one, other = self._only(chooses), self._only(~chooses)
        values = np.where(np.isnan(other.normalised), np.nan, one.normalised)
        if np.isfinite(values[~self.certain]).any():
            values[self.certain] = np.nan
        if not np.isfinite(values).any():
            raise MethodError("no cell is in both halves of the groups; give more pairs")
        i, j = np.unravel_index(int(np.nanargmax(values)), values.shape)
        estimate = other._estimate(int(i), int(j))
        return Peak(self.places[i], self.columns[j], estimate, float(values[i, j]))

    def agreement(self, other: "PatchingMap") -> float:
        """Pearson correlation of the normalised effects over cells that both maps have.

        Raises:
            MethodError: fewer than three such cells.
        """
        at = other.cells
        mine, theirs = self.normalised, other.normalised
        both = [
            (mine[i, j], theirs[at[str(p), c]])
            for i, p in enumerate(self.places)
            for j, c in enumerate(self.columns)
            if (str(p), c) in at
        ]
        kept = np.array([two for two in both if np.isfinite(two).all()]).reshape(-1, 2)
        if len(kept) < 3:
            raise MethodError(f"the maps share {len(kept)} cells; agreement takes at least 3")
        if np.ptp(kept[:, 0]) == 0 or np.ptp(kept[:, 1]) == 0:
            return math.nan
        return float(np.corrcoef(kept[:, 0], kept[:, 1])[0, 1])

    def table(self, n: int = 10) -> str:
        """The `n` largest cells as a markdown table."""
        return markdown(*self.rows(n))

    def summary(self) -> str:
        """What was run and where the effect is largest, in a few lines of plain text."""
        wrong = int((np.sign(self._gap) != np.sign(self._gap.mean())).sum())
        groups = len(set(self.groups))
        telling = [c for c in self.ranked if not self.certain[self.cells[str(c[0]), c[1]]]]
        place, position, value = (telling or self.ranked)[0]
        where = "all positions" if position is None else f"position {position}"
        lines = [
            f"{self.method}: {len(self.clean)} pairs in {groups} groups, {len(self.places)} "
            f"places x {len(self.columns)} positions",
            f"{self.metric}: clean {self.clean.mean():.3g}, corrupted "
            f"{self.corrupted.mean():.3g} {self.unit}".rstrip(),
            f"largest: {place}, {where}: {value} (0 corrupted, 1 clean)",
        ]
        if wrong:
            lines.append(f"{wrong} of {len(self.clean)} pairs differ in the other direction")
        if groups == 1:
            lines.append("one group of pairs: no interval can be given")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; NaN where a pair is too short."""
        return {
            "method": self.method,
            "metric": self.metric,
            "unit": self.unit,
            "places": [str(p) for p in self.places],
            "positions": list(self.positions),
            "labels": list(self.labels),
            "normalised": self.normalised.tolist(),
            "intervals": self.intervals.tolist(),
            "effects": self.effects.tolist(),
            "raw": self.raw.tolist(),
            "clean": self.clean.tolist(),
            "corrupted": self.corrupted.tolist(),
            "groups": list(self.groups),
            "items": [dict(item) for item in self.items],
            "provenance": dict(self.provenance),
        }

    def __repr__(self) -> str:
        return f"PatchingMap({self.summary()})"

    def _repr_html_(self) -> str:
        return html_table("Map", self.summary(), *self.rows(8))

    def rows(self, n: int) -> tuple[list[str], list[list[str]]]:
        """Heads and cells of a table of the `n` largest effects."""
        unit = f" ({self.unit})" if self.unit else ""
        head = ["place", "position", "normalised", f"{self.metric}{unit}", "pairs"]
        rows = []
        for place, position, value in self.ranked[:n]:
            i, j = self.cells[str(place), position]
            label = "all" if position is None else self.labels[j]
            pairs = int((~np.isnan(self.raw[:, i, j])).sum())
            rows.append([str(place), label, str(value), f"{self.effects[i, j]:+.3g}", str(pairs)])
        return head, rows

    def _estimate(self, i: int, j: int) -> Estimate:
        low, high = self.intervals[i, j]
        n = len({g for g, v in zip(self.groups, self.raw[:, i, j], strict=True) if v == v})
        return Estimate(float(self.normalised[i, j]), float(low), float(high), n, "fraction of gap")

    def _ratio(self, weights: Floats) -> Floats:
        """Weighted mean change over weighted mean gap, `[place position draw]`."""
        present = ~np.isnan(self.raw)
        change = np.where(present, self.raw - self.corrupted[:, None, None], 0.0)
        gap = present * self._gap[:, None, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.tensordot(change, weights, (0, 0)) / np.tensordot(gap, weights, (0, 0))

    def _only(self, rows: Any) -> "PatchingMap":
        return PatchingMap(
            self.method, self.metric, self.unit, self.places, self.positions, self.labels,
            self.raw[rows], self.clean[rows], self.corrupted[rows],
            tuple(g for g, keep in zip(self.groups, rows, strict=True) if keep),
            provenance=self.provenance,
        )  # fmt: skip

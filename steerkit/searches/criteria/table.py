"""What a comparison of criteria returns: places by criteria, winners, agreement, nulls."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from steerkit.errors import MethodError
from steerkit.registry import suggest
from steerkit.searches.criteria.rows import Normalise
from steerkit.searches.criteria.scores import first_of, labelled, spearman
from steerkit.site import Site
from steerkit.statistics import Floats, Null


@dataclass(frozen=True)
class Place:
    """A site and the position rule at which its states were read."""

    site: Site
    position: str

    def __str__(self) -> str:
        return f"{self.site}, {self.position}"


@dataclass(frozen=True)
class Column:
    """One criterion at every place.

    Attributes:
        name: the criterion.
        normalise: `none` or `rms`.
        unit: of its values.
        measures: what it measures.
        values: one a place; higher means the sides differ more.
        errors: bootstrap standard error of each value, resampling groups; NaN without.
        chosen: share of resamples in which each place came first; they sum to 1.
        null: the largest value over all places beside what it is under permuted labels
            (maxima against maxima); None without.
    """

    name: str
    normalise: Normalise
    unit: str
    measures: str
    values: tuple[float, ...]
    errors: tuple[float, ...]
    chosen: tuple[float, ...]
    null: Null | None = None

    @property
    def label(self) -> str:
        """Name and normalisation."""
        return labelled(self.name, self.normalise)

    @property
    def z(self) -> Floats:
        """The values in standard deviations over places, so that criteria can be set side by side.

        NaN stays NaN; an infinite value counts as the largest finite one.
        """
        v = np.asarray(self.values, dtype=np.float64)
        finite = v[np.isfinite(v)]
        if not finite.size:
            return v * np.nan
        v = np.where(np.isposinf(v), finite.max(), v)
        spread = float(np.nanstd(v))
        centred: Floats = v - np.nanmean(v)
        return centred / spread if spread > 1e-12 * float(np.abs(finite).max()) else 0 * centred

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            **{k: getattr(self, k) for k in ("name", "normalise", "unit", "measures")},
            "values": list(self.values),
            "errors": list(self.errors),
            "chosen": list(self.chosen),
            "null": self.null.to_json() if self.null else None,
        }


@dataclass(frozen=True, eq=False)
class CriteriaTable:
    """Criteria by places. None of them is a causal claim: compare them with a search.

    Attributes:
        places: the rows, positions in the order given and sites in forward order.
        columns: the criteria.
        n_prompts: how many prompts of each side, positive first.
        n_groups: independent groups among them.
        n_resamples: how often groups were resampled.
        provenance: model, hash of the contrast, seed, folds.
    """

    places: tuple[Place, ...]
    columns: tuple[Column, ...]
    n_prompts: tuple[int, int]
    n_groups: int
    n_resamples: int
    provenance: Mapping[str, Any]

    @property
    def positions(self) -> tuple[str, ...]:
        """The position rules, in order."""
        return tuple(dict.fromkeys(p.position for p in self.places))

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites, in forward order."""
        return tuple(sorted({p.site for p in self.places}))

    @property
    def labels(self) -> tuple[str, ...]:
        """The criteria's labels, in order."""
        return tuple(c.label for c in self.columns)

    def column(self, label: str) -> Column:
        """The criterion of a label, such as `js` or `js (rms)`.

        Raises:
            MethodError: there is none; says what was meant.
        """
        for column in self.columns:
            if column.label == label:
                return column
        raise MethodError(f"no criterion '{label}' in this table; {suggest(label, self.labels)}")

    def best(self, label: str) -> Place:
        """Where a criterion is highest; of equals the first."""
        return self.places[first_of(self.column(label).values)]

    @property
    def winners(self) -> dict[str, tuple[Place, float]]:
        """Of each criterion: its best place, and the share of resamples that place wins."""
        found = {}
        for c in self.columns:
            i = first_of(c.values)
            found[c.label] = (self.places[i], c.chosen[i] if c.chosen else float("nan"))
        return found

    def at(self, label: str) -> dict[Place, float]:
        """A criterion's values by place."""
        return dict(zip(self.places, self.column(label).values, strict=True))

    @property
    def agreement(self) -> Floats:
        """Spearman correlation over places between each two criteria, `[column column]`.

        NaN beside a criterion that is the same everywhere.
        """
        values = [np.asarray(c.values) for c in self.columns]
        return np.array([[spearman(a, b) for b in values] for a in values])

    def table(self) -> str:
        """Places by criteria as a markdown table; the best of each criterion is bold."""
        lines = [
            f"| site | position | {' | '.join(self.labels)} |",
            "|" + "---|" * (2 + len(self.columns)),
        ]
        best = [first_of(c.values) for c in self.columns]
        for i, place in enumerate(self.places):
            cells = [
                f"**{c.values[i]:.3g}**" if i == top else f"{c.values[i]:.3g}"
                for c, top in zip(self.columns, best, strict=True)
            ]
            lines.append(f"| {place.site} | {place.position} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def summary(self) -> str:
        """The winner of each criterion, one line each."""
        lines = [
            f"{len(self.columns)} criteria at {len(self.places)} places, "
            f"{self.n_prompts[0]} against {self.n_prompts[1]} prompts in {self.n_groups} groups"
        ]
        for c in self.columns:
            i = first_of(c.values)
            error = "" if np.isnan(c.errors[i]) else f" ± {c.errors[i]:.2g}"
            share = f", first in {c.chosen[i]:.0%} of resamples" if c.chosen else ""
            unit = f" {c.unit}" if c.unit else ""
            chance = f", p = {c.null.p:.3g} under permuted labels" if c.null else ""
            lines.append(
                f"{c.label}: {self.places[i]}: {c.values[i]:.3g}{error}{unit}{share}{chance}"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "places": [{"site": str(p.site), "position": p.position} for p in self.places],
            "columns": [c.to_json() for c in self.columns],
            "best": {
                label: {"site": str(p.site), "position": p.position, "first": share}
                for label, (p, share) in self.winners.items()
            },
            "rank_agreement": {"labels": list(self.labels), "spearman": self.agreement.tolist()},
            "n_prompts": list(self.n_prompts),
            "n_groups": self.n_groups,
            "n_resamples": self.n_resamples,
            "provenance": dict(self.provenance),
        }

    def __repr__(self) -> str:
        return f"CriteriaTable({self.summary()})"

    def _repr_html_(self) -> str:
        from html import escape

        left = "style='text-align:left'"
        head = "".join(f"<th {left}>{escape(t)}</th>" for t in ("site", "position", *self.labels))
        best = [first_of(c.values) for c in self.columns]
        rows = ""
        for i, place in enumerate(self.places):
            cells = [str(place.site), place.position]
            cells += [f"{c.values[i]:.3g}" for c in self.columns]
            bold = [False, False, *(i == top for top in best)]
            rows += (
                "<tr>"
                + "".join(
                    f"<td {left}>{'<b>' if b else ''}{escape(t)}{'</b>' if b else ''}</td>"
                    for t, b in zip(cells, bold, strict=True)
                )
                + "</tr>"
            )
        text = "<br>".join(escape(line) for line in self.summary().splitlines())
        return f"<b>Criteria</b><br>{text}<table><tr>{head}</tr>{rows}</table>"

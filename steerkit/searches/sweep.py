"""What a search returns: every candidate with its intervals, the choice, its nulls, the end."""

import html
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from steerkit.errors import MethodError
from steerkit.searches.candidates import Aim
from steerkit.searches.nulls import NullDraws
from steerkit.searches.rows import Final, SweepRow
from steerkit.statistics import Estimate

_QUANTITIES = {
    "kl": "the KL per token (nats)",
    "perplexity": "the loss of log-probability per token (nats)",
    "accuracy": "the share of right answers lost",
}


@dataclass(frozen=True, eq=False)
class Sweep:
    """All candidates of a search, the best of them, and how it does on unseen prompts.

    Attributes:
        rows: every candidate, in forward order.
        aim: `reduce` (on the positive prompts) or `induce` (on the negative ones).
        objective: what was measured.
        unit: its unit.
        plain: the objective of the unsteered model on the selection prompts.
        limits: largest mean damage that each guard accepts, by guard; empty without one.
        searched: the best effect beside the best that random directions reach in the same
            search over the same candidates (maxima against maxima); None if not run.
        final: the choice on unseen prompts; None where nothing met the guard.
        provenance: model, prompt hashes, sizes of the parts, seed, versions.
    """

    rows: tuple[SweepRow, ...]
    aim: Aim
    objective: str
    unit: str
    plain: Estimate
    limits: Mapping[str, float]
    searched: NullDraws | None
    final: Final | None
    provenance: Mapping[str, Any]

    @property
    def found(self) -> bool:
        """Whether any candidate meets the guard."""
        return any(row.allowed for row in self.rows)

    @property
    def best(self) -> SweepRow:
        """Largest effect among those that meet the guard; of equals, the least damage.

        Raises:
            MethodError: no candidate meets the guard; names the closest.
        """
        allowed = [row for row in self.rows if row.allowed]
        if not allowed:
            nearest, guard, found = self.nearest
            raise MethodError(
                f"none of {len(self.rows)} candidates keeps {_QUANTITIES.get(guard, guard)} on "
                f"guarded prompts below {self.limits[guard]:g}; the closest is {nearest} with "
                f"{found:.3g}. Try smaller strengths, positions='last_prompt', reference "
                "'negative_mean', or a larger guard_max"
            )
        return max(allowed, key=lambda r: r.merit)

    @property
    def nearest(self) -> tuple[SweepRow, str, float]:
        """The candidate that comes nearest to meeting every guard, its worst guard, and by what.

        Raises:
            MethodError: the search had no guard.
        """
        if not self.limits:
            raise MethodError("this search had no guard, so no candidate is near to one")

        def worst(row: SweepRow) -> tuple[float, str]:
            return max((row.damages[g].mean.value / x, g) for g, x in self.limits.items())

        row = min(self.rows, key=lambda r: worst(r)[0])
        guard = worst(row)[1]
        return row, guard, row.damages[guard].mean.value

    @property
    def guard_max(self) -> float:
        """Limit of the first guard; NaN without one."""
        return next(iter(self.limits.values()), float("nan"))

    @property
    def cost(self) -> str:
        """The first guard with its unit, as a column's head; empty without one."""
        units = {r.guard.unit for r in self.rows[:1] if r.guard}
        return f"{next(iter(self.limits))} ({next(iter(units))})" if units else ""

    @property
    def pareto(self) -> tuple[SweepRow, ...]:
        """Candidates that no other beats in effect without more damage, cheapest first.

        Of each kind of damage; with equal numbers the first candidate stands for all.
        """
        points = np.array(
            [[-r.effect.value, *(r.damages[g].mean.value for g in self.limits)] for r in self.rows]
        )
        front = [
            row
            for i, row in enumerate(self.rows)
            if not any(
                (other <= points[i]).all() and ((other < points[i]).any() or j < i)
                for j, other in enumerate(points)
                if j != i
            )
        ]
        return tuple(sorted(front, key=lambda r: r.guard.value if r.guard else 0.0))

    @property
    def best_of_each_site(self) -> tuple[SweepRow, ...]:
        """The best allowed candidate of every site that has one."""
        sites = dict.fromkeys(row.site for row in self.rows if row.allowed)
        return tuple(
            max((r for r in self.rows if r.allowed and r.site == site), key=lambda r: r.merit)
            for site in sites
        )

    @property
    def ranked(self) -> list[SweepRow]:
        """Every candidate, the choice first: those that meet the guard before the others."""
        return sorted(self.rows, key=lambda r: (r.allowed, *r.merit), reverse=True)

    def table(self, n: int = 10) -> str:
        """The `n` best candidates as a markdown table, the choice first."""
        header = (
            "| site | method | operator | positions | strength | "
            f"{self.objective} ({self.unit}) | effect | {self.cost} | size | allowed |"
        )
        lines = [header, "|" + "---|" * 10]
        for r in self.ranked[:n]:
            cost = f"{r.guard}" if r.guard else ""
            lines.append(
                f"| {r.site} | {r.method} | {r.how} | {r.positions} | {r.strength:g} | {r.value} "
                f"| {r.effect} | {cost} | {r.size:.3g} | {'yes' if r.allowed else 'no'} |"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; `json.dumps` takes it."""
        return {
            "aim": self.aim,
            "objective": self.objective,
            "unit": self.unit,
            "plain": self.plain.to_json(),
            "limits": dict(self.limits),
            "best": self.best.to_json() if self.found else None,
            "pareto": [self.rows.index(row) for row in self.pareto],
            "searched": self.searched.to_json() if self.searched else None,
            "final": self.final.to_json() if self.final else None,
            "rows": [row.to_json() for row in self.rows],
            "provenance": json.loads(json.dumps(dict(self.provenance))),
        }

    def summary(self) -> str:
        """What was found, in a few lines of plain text."""
        if not self.found:
            row, guard, found = self.nearest
            return (
                f"{len(self.rows)} candidates, none within the guard; the nearest is {row} with "
                f"{guard} {found:.3g} (limit {self.limits[guard]:g})"
            )
        lines = [f"best of {len(self.rows)}: {self.best}"]
        if self.final:
            f = self.final
            lines.append(
                f"on unseen prompts: {self.objective} {f.plain} -> {f.steered} ({self.unit})"
            )
            lines.append(f"on the other side: {f.other_plain} -> {f.other_steered}")
            lines += [
                f"{name} {d.mean} {d.mean.unit}, 95th percentile {d.p95:.3g}"
                for name, d in f.damages.items()
            ]
            lines.append(f"moved the wrong way: {f.wrong_way} of prompts")
            lines += [
                f"on {t.name}: {self.objective} {t.plain} -> {t.steered} ({self.unit})"
                for t in f.transfer
            ]
            lines += [_null_line(n) for n in f.nulls]
        if self.searched:
            lines.append(_null_line(self.searched))
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Sweep({self.summary()})"

    def _repr_html_(self) -> str:
        rows = "".join(
            "<tr>"
            + "".join(
                f"<td style='text-align:left'>{html.escape(cell)}</td>"
                for cell in (
                    str(r.site),
                    r.method,
                    r.how,
                    r.positions,
                    f"{r.strength:g}",
                    str(r.value),
                    str(r.guard) if r.guard else "",
                    "yes" if r.allowed else "no",
                )
            )
            + "</tr>"
            for r in self.ranked[:8]
        )
        heads = (
            "site", "method", "operator", "positions", "strength",
            f"{self.objective} ({self.unit})", self.cost, "allowed",
        )  # fmt: skip
        head = "".join(f"<th style='text-align:left'>{html.escape(h)}</th>" for h in heads)
        text = "<br>".join(html.escape(line) for line in self.summary().splitlines())
        return f"<b>Sweep</b><br>{text}<table><tr>{head}</tr>{rows}</table>"


def _null_line(n: NullDraws) -> str:
    found = n.null
    verdict = "exceeds all" if n.exceeds_all else "does not exceed all"
    kept = "" if n.allowed is None else f", {n.allowed} within the guard"
    near = "" if math.isnan(n.overlap) else f", mean |cosine| {n.overlap:.2f}"
    return (
        f"{n.name}: effect {n.observed:.3g} {verdict} of {found.n} random directions "
        f"(mean {found.mean:.3g}, 95% {found.q95:.3g}, max {found.maximum:.3g}, "
        f"p = {found.p:.3g}{near}{kept})"
    )

"""What a search returns: every candidate with its intervals, the choice, its nulls, the end."""

import html
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from steerkit.direction import Direction
from steerkit.errors import MethodError
from steerkit.protocols import Intervention
from steerkit.searches.candidates import Aim
from steerkit.searches.nulls import NullDraws
from steerkit.site import Site
from steerkit.statistics import Estimate


@dataclass(frozen=True, eq=False)
class SweepRow:
    """One candidate, measured on the selection prompts.

    Attributes:
        direction: the vector.
        intervention: operator, positions and strength with it, ready for `model.with_`.
        operator: `add`, `ablate`, ...
        reference: what the operator moves to, or empty.
        positions: the position rule.
        strength: see the operator.
        value: the objective while steered.
        effect: change of the objective in the aim's sense, paired by prompt.
        guard: mean KL per token on the guarded prompts, in nats; None without a guard.
        guard_p95: 95th percentile of that KL over tokens.
        size: mean |delta h| over the touched tokens, in activation units.
        allowed: whether the guard is met.
    """

    direction: Direction
    intervention: Intervention
    operator: str
    reference: str
    positions: str
    strength: float
    value: Estimate
    effect: Estimate
    guard: Estimate | None
    guard_p95: float
    size: float
    allowed: bool

    @property
    def site(self) -> Site:
        """Where the direction was read and acts."""
        return self.direction.site

    @property
    def merit(self) -> tuple[float, float, float]:
        """Larger is better: effect, then less damage, then a smaller change of the stream."""
        return (self.effect.value, -(self.guard.value if self.guard else 0.0), -self.size)

    @property
    def method(self) -> str:
        """The extractor."""
        return self.direction.method

    @property
    def how(self) -> str:
        """Operator and reference in words."""
        return f"{self.operator} to {self.reference}" if self.reference else self.operator

    def __str__(self) -> str:
        return (
            f"{self.how}, {self.method} at {self.site}, {self.positions}, "
            f"strength {self.strength:g}"
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, without the vector."""
        return {
            "site": str(self.site),
            "method": self.method,
            "operator": self.operator,
            "reference": self.reference,
            "positions": self.positions,
            "strength": self.strength,
            "value": self.value.to_json(),
            "effect": self.effect.to_json(),
            "guard": self.guard.to_json() if self.guard else None,
            "guard_p95": self.guard_p95,
            "size": self.size,
            "allowed": self.allowed,
        }


@dataclass(frozen=True)
class Final:
    """The choice, measured once on prompts that the search never saw.

    Attributes:
        plain: the objective unsteered.
        steered: the objective with the choice.
        effect: its change in the aim's sense, paired by prompt.
        guard: mean KL per token, nats; None without a guard.
        guard_p95: 95th percentile of that KL over tokens.
        other_plain: the objective on the other side of the contrast, unsteered.
        other_steered: the same with the choice.
        nulls: random directions with the same operator, at the same size, on these prompts.
        items: each prompt with both answers (where there are any) and both values.
    """

    plain: Estimate
    steered: Estimate
    effect: Estimate
    guard: Estimate | None
    guard_p95: float
    other_plain: Estimate
    other_steered: Estimate
    nulls: tuple[NullDraws, ...]
    items: tuple[Mapping[str, Any], ...] = field(repr=False, default=())

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "plain": self.plain.to_json(),
            "steered": self.steered.to_json(),
            "effect": self.effect.to_json(),
            "guard": self.guard.to_json() if self.guard else None,
            "guard_p95": self.guard_p95,
            "other_plain": self.other_plain.to_json(),
            "other_steered": self.other_steered.to_json(),
            "nulls": [n.to_json() for n in self.nulls],
            "items": [dict(item) for item in self.items],
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
        guard_name: the guard, or None.
        guard_max: its limit, in nats a token.
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
    guard_name: str | None
    guard_max: float
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
            closest = min(self.rows, key=lambda r: r.guard.value if r.guard else 0.0)
            kl = closest.guard.value if closest.guard else float("nan")
            raise MethodError(
                f"none of {len(self.rows)} candidates keeps the KL on guarded prompts below "
                f"{self.guard_max:g} nats per token; the closest is {closest} with {kl:.3g}. "
                "Try smaller strengths, positions='last_prompt', reference 'negative_mean', "
                "or a larger guard_max"
            )
        return max(allowed, key=lambda r: r.merit)

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
            f"{self.objective} ({self.unit}) | effect | KL (nats/token) | size | allowed |"
        )
        lines = [header, "|" + "---|" * 10]
        for r in self.ranked[:n]:
            kl = "" if r.guard is None else f"{r.guard}"
            lines.append(
                f"| {r.site} | {r.method} | {r.how} | {r.positions} | {r.strength:g} | {r.value} "
                f"| {r.effect} | {kl} | {r.size:.3g} | {'yes' if r.allowed else 'no'} |"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; `json.dumps` takes it."""
        return {
            "aim": self.aim,
            "objective": self.objective,
            "unit": self.unit,
            "plain": self.plain.to_json(),
            "guard": {"name": self.guard_name, "max": self.guard_max},
            "best": self.best.to_json() if self.found else None,
            "searched": self.searched.to_json() if self.searched else None,
            "final": self.final.to_json() if self.final else None,
            "rows": [row.to_json() for row in self.rows],
            "provenance": json.loads(json.dumps(dict(self.provenance))),
        }

    def summary(self) -> str:
        """What was found, in a few lines of plain text."""
        if not self.found:
            return f"{len(self.rows)} candidates, none within the guard ({self.guard_max:g})"
        lines = [f"best of {len(self.rows)}: {self.best}"]
        if self.final:
            f = self.final
            lines.append(
                f"on unseen prompts: {self.objective} {f.plain} -> {f.steered} ({self.unit})"
            )
            lines.append(f"on the other side: {f.other_plain} -> {f.other_steered}")
            if f.guard:
                lines.append(f"KL {f.guard} nats/token, 95th percentile {f.guard_p95:.3g}")
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
            f"{self.objective} ({self.unit})", "KL (nats/token)", "allowed",
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

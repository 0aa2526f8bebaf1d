"""What `calibrate` returns: a strength for every direction and operator, and what it spends."""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

from steerkit.calibrated import CalibratedStrength
from steerkit.direction import Direction, Directions
from steerkit.errors import MethodError
from steerkit.protocols import Intervention
from steerkit.searches.calibration.roots import Root
from steerkit.site import Site
from steerkit.statistics import Estimate


@dataclass(frozen=True, eq=False)
class Calibration:
    """One direction under one operator at the strength that meets the goal.

    Attributes:
        direction: with the record of this calibration, so that it is saved with it.
        intervention: at the strength, with that direction; ready for `model.with_`.
        record: everything that files keep.
        root: what was found on the fitting prompts, of strengths without their sign.
        interval: of the strength, when the fitting prompts' groups are resampled (curves are
            read off between the strengths that were measured); NaN where the goal is not met.
        p95: 95th percentile of the held-out KL over tokens, nats; NaN for an effect.
        curve: `(strength, value)` of everything measured on the fitting prompts, ascending.
    """

    direction: Direction
    intervention: Intervention
    record: CalibratedStrength
    root: Root
    interval: Estimate
    p95: float
    curve: tuple[tuple[float, float], ...]

    @property
    def site(self) -> Site:
        """Where it acts first."""
        return self.intervention.sites[0]

    @property
    def operator(self) -> str:
        """The operator and what it moves to."""
        reference = self.record.settings.get("reference")
        return self.record.operator + (f" to {reference}" if reference is not None else "")

    @property
    def strength(self) -> float:
        """Signed; of a goal that is not met, the strength that comes nearest."""
        return self.record.strength

    @property
    def achieved(self) -> Estimate:
        """The quantity on prompts that had no part in finding the strength."""
        return self.record.achieved

    @property
    def status(self) -> str:
        """See `calibration_roots.Root`."""
        return self.root.status

    @property
    def met(self) -> bool:
        """Whether some strength meets the goal."""
        return self.root.met

    def explain(self) -> str:
        """The status in words, for a reader who has to decide what to do."""
        r, goal, unit = self.root, self.record.goal, self.record.unit
        if r.status == "unreachable":
            limit = max(abs(s) for s, _ in self.curve)
            return (
                f"{goal:g} {unit} cannot be reached: the largest is {r.largest:.3g}, "
                f"with strengths up to {limit:g}"
            )
        if r.status == "no_effect":
            return f"{self.record.operator} along this direction changes nothing that was measured"
        if r.status == "non_monotone":
            return f"{goal:g} {unit} is crossed more than once; this is the smallest strength"
        if r.status == "step":
            return f"the curve jumps over {goal:g} {unit} here; this side has {r.value:.3g}"
        return "converged"

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, without the vector."""
        return {
            "direction": str(self.direction),
            **self.record.to_json(),
            "explanation": self.explain(),
            "fitted": self.root.value,
            "largest": self.root.largest,
            "interval": self.interval.to_json(),
            "p95": self.p95,
            "curve": [list(point) for point in self.curve],
        }

    def __str__(self) -> str:
        return (
            f"{self.operator} {self.direction}: strength {self.strength:.3g}, "
            f"{self.record.quantity} {self.achieved} {self.record.unit} ({self.status})"
        )


@dataclass(frozen=True, eq=False)
class Calibrations(Sequence[Calibration]):
    """All that were calibrated together, in forward order of their sites.

    Attributes:
        items: one a direction and operator.
        rounds: batched rounds of measurement that it took to find all strengths.
        measured: programs measured, all rounds together.
        provenance: model, prompt hash, sizes of the parts, seed, versions.
    """

    items: tuple[Calibration, ...]
    rounds: int
    measured: int
    provenance: Mapping[str, Any]

    @overload
    def __getitem__(self, key: int) -> Calibration: ...
    @overload
    def __getitem__(self, key: slice) -> "Calibrations": ...
    def __getitem__(self, key: int | slice) -> "Calibration | Calibrations":
        if isinstance(key, slice):
            return replace(self, items=self.items[key])
        return self.items[key]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Calibration]:
        return iter(self.items)

    def at(self, site: Site | int | str, operator: str | None = None) -> Calibration:
        """The one at a site (and of an operator, where there are several).

        Raises:
            MethodError: none or several.
        """
        wanted = Site.parse(site)
        found = [
            c
            for c in self
            if c.site == wanted and operator in (None, c.operator, c.record.operator)
        ]
        if len(found) != 1:
            there = ", ".join(f"{c.operator} at {c.site}" for c in self)
            raise MethodError(
                f"{len(found)} calibrations at {wanted}"
                f"{f' of {operator}' if operator else ''}; there are: {there}"
            )
        return found[0]

    @property
    def met(self) -> "Calibrations":
        """Only those whose goal is met."""
        return replace(self, items=tuple(c for c in self if c.met))

    @property
    def directions(self) -> Directions:
        """Every direction with the records of all its calibrations, ready to be saved."""
        kept: dict[tuple[bytes, Site, str], Direction] = {}
        for c in self:
            key = (c.direction.unit.numpy().tobytes(), c.direction.site, c.direction.method)
            base = kept.setdefault(key, c.direction)
            new = tuple(r for r in c.direction.calibrations if r not in base.calibrations)
            kept[key] = replace(base, calibrations=(*base.calibrations, *new))
        return Directions(tuple(kept.values()))

    def table(self) -> str:
        """Everything as a markdown table."""
        first = self.items[0].record
        lines = [
            "| site | method | operator | strength | [95%] | held-out "
            f"{first.quantity} ({first.unit}) | p95 | status |",
            "|" + "---|" * 8,
        ]
        for c in self:
            interval = "" if c.interval.n == 0 else f"[{c.interval.low:.3g}, {c.interval.high:.3g}]"
            p95 = f"{c.p95:.3g}" if c.p95 == c.p95 else ""
            lines.append(
                f"| {c.site} | {c.direction.method} | {c.operator} | {c.strength:.3g} "
                f"| {interval} | {c.achieved} | {p95} | {c.status} |"
            )
        return "\n".join(lines)

    def summary(self) -> str:
        """What was found, in a few lines of plain text."""
        r = self.items[0].record
        lines = [
            f"{len(self)} strengths for {r.quantity} {r.statistic} = {r.goal:g} {r.unit}, found in "
            f"{self.rounds} rounds ({self.measured} programs measured)"
        ]
        lines += [f"{c.operator} {c.direction}: {c.explain()}" for c in self if not c.met]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; `json.dumps` takes it."""
        return {
            "calibrations": [c.to_json() for c in self],
            "rounds": self.rounds,
            "measured": self.measured,
            "provenance": dict(self.provenance),
        }

    def __repr__(self) -> str:
        return f"Calibrations({self.summary()})"

    def _repr_html_(self) -> str:
        heads, _, *rows = (line.strip("| ").split(" | ") for line in self.table().splitlines())
        cells = "".join(
            "<tr>"
            + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row)
            + "</tr>"
            for row in rows
        )
        head = "".join(f"<th style='text-align:left'>{html.escape(h)}</th>" for h in heads)
        text = "<br>".join(html.escape(line) for line in self.summary().splitlines())
        return f"<b>Calibrations</b><br>{text}<table><tr>{head}</tr>{cells}</table>"


@dataclass(frozen=True)
class Verified:
    """A recorded strength measured again, perhaps on another engine, machine or set of prompts.

    Attributes:
        record: what the artefact says.
        measured: the same quantity now.
        same_prompts: whether the prompts are the very ones; then the same held-out part was
            measured, and only numerics can differ.
        agrees: with the same prompts, whether the values differ by no more than 5%; with
            others, whether the intervals overlap.
    """

    record: CalibratedStrength
    measured: Estimate
    same_prompts: bool
    agrees: bool

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "record": self.record.to_json(),
            "measured": self.measured.to_json(),
            "same_prompts": self.same_prompts,
            "agrees": self.agrees,
        }

    def __str__(self) -> str:
        prompts = "the same prompts" if self.same_prompts else "other prompts"
        verdict = "agrees" if self.agrees else "DOES NOT AGREE"
        return (
            f"{self.record.operator} x{self.record.strength:.3g}: {self.record.quantity} "
            f"{self.record.achieved} recorded, {self.measured} measured on {prompts}: {verdict}"
        )

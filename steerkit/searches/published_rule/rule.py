"""The selection rule of the refusal-direction paper, on stored evaluation records alone.

A record says what one candidate (a position after the instruction, a layer) did on validation
prompts: its bypass score (`refusal_score`: mean refusal score of harmful prompts while the
direction is ablated everywhere), its induce score (`steering_score`: mean refusal score of
harmless prompts while the mean difference is added once at its layer) and its KL
(`kl_div_score`: mean KL on harmless prompts while it is ablated). A record's layer l is the
*input* of block l: `resid_pre@l`, the same stream as `resid_post@(l - 1)`.

Nothing here needs a model: replay the rule on other people's records, or make your own with
`measure_records`.

Source: Arditi et al. 2024, Refusal in language models is mediated by a single direction
(arXiv:2406.11717), appendix C, and its published code.
"""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerkit.errors import MethodError
from steerkit.searches.published_rule.record import SCORES, Record, read_records


@dataclass(frozen=True)
class Judged:
    """A record and every rule that it breaks; none if it is kept."""

    record: Record
    reasons: tuple[str, ...]
    misses: float
    """By how much it misses, 0 if kept: the KL relative to its limit, the induce score in nats,
    the layer in layers, added up; infinite for what is no number."""

    @property
    def kept(self) -> bool:
        """Whether it breaks no rule."""
        return not self.reasons


@dataclass(frozen=True)
class Selection:
    """The rule applied: what was kept, what fell out and why, and the choice.

    Attributes:
        rows: every record, judged, in the order given.
        n_layers: of the model that the records are of.
        kl_threshold: largest KL allowed, nats; None for no limit.
        induce_threshold: smallest induce score allowed; None for no limit.
        prune_layer_fraction: share of the last layers that is left out; None for none.
    """

    rows: tuple[Judged, ...]
    n_layers: int
    kl_threshold: float | None
    induce_threshold: float | None
    prune_layer_fraction: float | None

    @classmethod
    def of(
        cls,
        records: Sequence[Mapping[str, Any] | Record],
        *,
        n_layers: int,
        kl_threshold: float | None = 0.1,
        induce_threshold: float | None = 0.0,
        prune_layer_fraction: float | None = 0.2,
    ) -> "Selection":
        """Judge every record; unlike `select_direction`, finding none is no error.

        Raises:
            MethodError: no records, one that cannot be read, or a layer the model lacks.
        """
        read = [r if isinstance(r, Record) else Record.read(r, i) for i, r in enumerate(records)]
        if not read:
            raise MethodError("there are no records to choose from; give at least one")
        limit = layer_limit(n_layers, prune_layer_fraction)
        for i, record in enumerate(read):
            if not 0 <= record.layer < n_layers:
                raise MethodError(
                    f"record {i} is of layer {record.layer}, but n_layers={n_layers} has layers "
                    f"0..{n_layers - 1}; give the model's number of layers"
                )
        judged = tuple(_judged(r, limit, n_layers, kl_threshold, induce_threshold) for r in read)
        return cls(judged, n_layers, kl_threshold, induce_threshold, prune_layer_fraction)

    @property
    def kept(self) -> tuple[Record, ...]:
        """Records that break no rule, the lowest bypass score first; equals as given."""
        kept = [row.record for row in self.rows if row.kept]
        return tuple(sorted(kept, key=lambda r: r.refusal_score))

    @property
    def found(self) -> bool:
        """Whether any record is kept."""
        return any(row.kept for row in self.rows)

    @property
    def nearest(self) -> Judged:
        """The record that breaks fewest rules; of equals the one that misses by least."""
        return min(self.rows, key=lambda row: (len(row.reasons), row.misses))

    @property
    def chosen(self) -> Record:
        """The kept record with the lowest bypass score.

        Raises:
            MethodError: none is kept; names the nearest and what it breaks.
        """
        if self.found:
            return self.kept[0]
        near = self.nearest
        raise MethodError(
            f"none of {len(self.rows)} records survives the selection rule; the nearest is "
            f"{near.record}, which fell out because of {' and '.join(near.reasons)}. Give more "
            "positions or layers, or allow more with kl_threshold=, induce_threshold= or "
            "prune_layer_fraction="
        )

    def table(self, n: int | None = None) -> str:
        """Records as a markdown table: the kept ones by rank, then the others and why."""
        lines = ["| position | layer | site | bypass | induce | KL | |", "|" + "---|" * 7]
        for row in self._ranked[:n]:
            r, verdict = row.record, self._verdict(row)
            lines.append(
                f"| {r.position} | {r.layer} | {r.site} | {r.refusal_score:.3g} | "
                f"{r.steering_score:.3g} | {r.kl_div_score:.3g} | {verdict} |"
            )
        return "\n".join(lines)

    def summary(self) -> str:
        """The choice, or the nearest miss, in a few words."""
        kept = len(self.kept)
        if not kept:
            near = self.nearest
            return f"no record of {len(self.rows)} is kept; nearest: {near.record}"
        return (
            f"{self.chosen} of {self.chosen.site}, first of {kept} kept of {len(self.rows)} records"
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, from whose `records` the choice can be made again."""
        return {
            "chosen": self.chosen.to_json() if self.found else None,
            "n_layers": self.n_layers,
            "kl_threshold": self.kl_threshold,
            "induce_threshold": self.induce_threshold,
            "prune_layer_fraction": self.prune_layer_fraction,
            "records": [
                {**row.record.to_json(), "fell_out": list(row.reasons)} for row in self.rows
            ],
        }

    @property
    def _ranked(self) -> list[Judged]:
        place = {id(r): i for i, r in enumerate(self.kept)}
        last = len(place)
        return sorted(
            self.rows, key=lambda row: (place.get(id(row.record), last), len(row.reasons))
        )

    def _verdict(self, row: Judged) -> str:
        if not row.kept:
            return "; ".join(row.reasons)
        return "chosen" if row.record is self.chosen else "kept"

    def __repr__(self) -> str:
        return f"Selection({self.summary()})"

    def _repr_html_(self) -> str:
        left = "style='text-align:left'"
        heads = ("position", "layer", "site", "bypass", "induce", "KL (nats)", "")
        head = "".join(f"<th {left}>{h}</th>" for h in heads)
        body = ""
        for row in self._ranked[:12]:
            r = row.record
            cells = (
                str(r.position), str(r.layer), str(r.site), f"{r.refusal_score:.3g}",
                f"{r.steering_score:.3g}", f"{r.kl_div_score:.3g}", self._verdict(row),
            )  # fmt: skip
            body += "<tr>" + "".join(f"<td {left}>{html.escape(c)}</td>" for c in cells) + "</tr>"
        more = len(self.rows) - 12
        rest = f"<br>and {more} more records" if more > 0 else ""
        return (
            f"<b>Selection rule</b><br>{html.escape(self.summary())}"
            f"<table><tr>{head}</tr>{body}</table>{rest}"
        )


def select_direction(
    records: "Sequence[Mapping[str, Any] | Record] | str | Path",
    *,
    n_layers: int,
    kl_threshold: float | None = 0.1,
    induce_threshold: float | None = 0.0,
    prune_layer_fraction: float | None = 0.2,
) -> Selection:
    """Choose among evaluated candidates as the refusal-direction paper does.

    A record falls out if a score is not a number, if its layer is at or beyond
    `int(n_layers * (1 - prune_layer_fraction))`, if its KL is above `kl_threshold`, or if its
    induce score is below `induce_threshold`. Of the rest the lowest bypass score wins; of
    equals the one that came first.

    Args:
        records: mappings with position, layer, refusal_score, steering_score and kl_div_score
            (see `evaluation_record.ALIASES` for other names), or a JSON file of them.
        n_layers: of the model that they are of.
        kl_threshold: nats; None for no limit, here and below.
        induce_threshold: log-odds.
        prune_layer_fraction: share of the last layers left out.

    Returns:
        The `Selection`: `.chosen`, `.kept`, and `.rows` with the reasons of the others.

    Raises:
        MethodError: nothing survives (names the nearest record), or records that cannot be read.
        OutputError: a file that cannot be read.
    """
    listed = read_records(Path(records)) if isinstance(records, str | Path) else records
    made = Selection.of(
        listed,
        n_layers=n_layers,
        kl_threshold=kl_threshold,
        induce_threshold=induce_threshold,
        prune_layer_fraction=prune_layer_fraction,
    )
    _ = made.chosen  # raises where there is none
    return made


def layer_limit(n_layers: int, prune_layer_fraction: float | None) -> int:
    """The first layer that is left out.

    >>> layer_limit(32, 0.2), layer_limit(28, 0.2), layer_limit(4, None)
    (25, 22, 4)
    """
    if isinstance(n_layers, bool) or not isinstance(n_layers, int) or n_layers < 1:
        raise MethodError(f"n_layers is the model's number of layers; got {n_layers!r}")
    if prune_layer_fraction is None:
        return n_layers
    if not 0 <= prune_layer_fraction < 1:
        raise MethodError(
            f"prune_layer_fraction is a share of the layers, from 0 to below 1; got "
            f"{prune_layer_fraction}"
        )
    return int(n_layers * (1.0 - prune_layer_fraction))


def _judged(
    record: Record, limit: int, n_layers: int, kl: float | None, induce: float | None
) -> Judged:
    reasons: list[str] = []
    misses = 0.0
    for name in SCORES:
        if math.isnan(getattr(record, name)):
            reasons.append(f"{name} is not a number")
            misses = math.inf
    if record.layer >= limit:
        reasons.append(f"layer {record.layer} is among the last, from {limit} of {n_layers}")
        misses += record.layer - limit + 1
    if kl is not None and record.kl_div_score > kl:
        reasons.append(f"KL {record.kl_div_score:.3g} is above {kl:g}")
        misses += (record.kl_div_score - kl) / max(kl, 1e-12)
    if induce is not None and record.steering_score < induce:
        reasons.append(f"induce score {record.steering_score:.3g} is below {induce:g}")
        misses += induce - record.steering_score
    return Judged(record, tuple(reasons), misses)

"""What directions of several models do in each of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from steerkit.comparisons.changes import mean_change, sign_flips
from steerkit.errors import MethodError
from steerkit.lenses.tables import html_table, markdown
from steerkit.statistics import Estimate, Floats, Null

PAPER = "arXiv:2602.00298"
LEVEL = 0.05
"""Family-wise level, over all cells, at which an effect counts as found."""


@dataclass(frozen=True)
class Cell:
    """One direction in one model under one operator.

    Attributes:
        operator: `add` or `ablate`.
        source: the direction's name.
        target: the model's.
        effect: rise (add) or fall (ablate) of the measure, mean over prompts.
        null: |effect| beside random directions that move the stream as far.
        prompts_p: two-sided sign-flip test over groups of prompts: is there an effect beyond these
            prompts? One changed answer can exceed all random directions.
        adjusted_p: beside the largest effect that each random direction has in any cell of the
            operator: corrected for looking at all of them.
        normalised: as a fraction of what the model's own direction does; None without one, NaN
            where that is not told from 0.
        size: mean |delta h|, in activation units.
        kl: KL(plain || steered) on plain answers, mean nats per token; compare only like with like.
        kl_p95: its 95th percentile.
        incoherent: mean of what is wrong with its answers, where that was asked for.
    """

    operator: str
    source: str
    target: str
    effect: Estimate
    null: Null
    prompts_p: float
    adjusted_p: float
    normalised: Estimate | None
    size: float
    kl: float
    kl_p95: float
    incoherent: Estimate | None = None

    @property
    def found(self) -> bool:
        """Whether the effect exceeds random directions' and is not that of a few prompts."""
        return self.adjusted_p <= LEVEL and self.prompts_p <= LEVEL

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            **self.__dict__,
            "effect": self.effect.to_json(),
            "null": self.null.to_json(),
            "normalised": self.normalised.to_json() if self.normalised else None,
            "incoherent": self.incoherent.to_json() if self.incoherent else None,
            "found": self.found,
        }


@dataclass(frozen=True, eq=False)
class TransferMatrix:
    """Every direction in every model.

    Attributes:
        cells: one an operator, target and source.
        sources: the directions' names.
        targets: the models'.
        operators: what was done with them.
        unit: of the effects.
        changes: (operator, source, target) -> the change of each prompt.
        groups: operator -> the group of each prompt.
        provenance: models, directions, settings.
    """

    cells: tuple[Cell, ...]
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    operators: tuple[str, ...]
    unit: str
    changes: Mapping[tuple[str, str, str], Floats] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def loss(self, source: str, target: str, operator: str = "add") -> tuple[Estimate, float]:
        """What a model's direction does at home less what it does in another model; and its p.

        On the same prompts, so paired; p is the two-sided sign-flip test over their groups.

        Raises:
            MethodError: there is no such cell.
        """
        self.at(source, target, operator)
        self.at(source, source, operator)
        lost = self.changes[operator, source, source] - self.changes[operator, source, target]
        groups = self.groups[operator]
        estimate = mean_change(lost, groups, unit=f"difference, {self.unit}", seed=0)
        return estimate, sign_flips(lost, groups)

    def at(self, source: str, target: str, operator: str = "add") -> Cell:
        """One cell.

        Raises:
            MethodError: there is no such cell.
        """
        for cell in self.cells:
            if (cell.source, cell.target, cell.operator) == (source, target, operator):
                return cell
        raise MethodError(
            f"no cell {operator} of '{source}' in '{target}'; directions "
            f"{', '.join(self.sources)}, models {', '.join(self.targets)}, operators "
            f"{', '.join(self.operators)}"
        )

    def table(self) -> str:
        """One row a cell, as markdown."""
        return markdown(*self._rows())

    def summary(self) -> str:
        """What was found, in a few lines of plain text."""
        lines = [f"{len(self.sources)} directions in {len(self.targets)} models"]
        for operator in self.operators:
            found = [
                f"{c.source} in {c.target}"
                for c in self.cells
                if c.operator == operator and c.found and c.source != c.target
            ]
            home = [c.target for c in self.cells if c.operator == operator and c.found
                    and c.source == c.target]  # fmt: skip
            lines.append(
                f"{operator}: works at home in {', '.join(home) or 'no model'}; transfers: "
                f"{', '.join(found) or 'none'}"
            )
        draws = min((c.null.n for c in self.cells), default=0)
        if 1 / (1 + draws) > LEVEL:
            lines.append(
                f"inconclusive: {draws} random directions cannot give p <= {LEVEL}; take 19"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "paper": PAPER,
            "unit": self.unit,
            "sources": list(self.sources),
            "targets": list(self.targets),
            "operators": list(self.operators),
            "cells": [c.to_json() for c in self.cells],
            "provenance": dict(self.provenance),
        }

    def __repr__(self) -> str:
        return f"TransferMatrix({self.summary()})"

    def _repr_html_(self) -> str:
        return html_table("Direction transfer", self.summary(), *self._rows())

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        head = [
            "operator",
            "direction",
            "model",
            f"effect ({self.unit})",
            "of own",
            "random (q95)",
            "p (adjusted)",
            "KL (nats per token)",
        ]
        rows = [
            [
                c.operator,
                c.source,
                c.target,
                str(c.effect),
                str(c.normalised) if c.normalised else "",
                f"{c.null.q95:.3g}",
                f"{c.adjusted_p:.3g}",
                f"{c.kl:.3g}",
            ]
            for c in self.cells
        ]
        return head, rows

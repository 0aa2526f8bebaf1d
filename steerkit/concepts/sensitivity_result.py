"""What TCAV found: for each concept and site a score, its tests, and what chance scores."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from steerkit.errors import MethodError
from steerkit.lenses.tables import html_table, markdown
from steerkit.site import Site
from steerkit.statistics import Estimate, Floats, Null

ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class TcavCell:
    """One concept at one site.

    Attributes:
        concept: its name.
        site: such as `resid_post@3`.
        score: share of prompts with a positive sensitivity; zero sensitivities do not count.
        sensitivity: mean directional derivative along scale x unit: nats that strength 1 of the
            steering vector moves the target by, to first order.
        p_sign: exact two-sided sign test, one vote a group of prompts.
        random_score: distance of the score from 0.5, and that of vectors fitted to permuted
            labels.
        random_sensitivity: size of the mean sensitivity, against the same vectors, each as long
            as the gap of its own labels.
        scale: gap of the class means along the unit, in activation units.
        sensitivities: `[prompt]`, nats per strength.
        p_adjusted: `p` after Holm's correction over all cells.
    """

    concept: str
    site: str
    score: Estimate
    sensitivity: Estimate
    p_sign: float
    random_score: Null
    random_sensitivity: Null
    scale: float
    sensitivities: Floats
    p_adjusted: float = float("nan")

    @property
    def p(self) -> float:
        """The larger of the sign test's p and that of the mean sensitivity's null.

        Both hypotheses have to fall (an intersection-union test), which needs no correction.
        The score's own null is reported, but decides nothing: where random vectors score 0 or
        1, as they often do, no score could pass it.
        """
        return max(self.p_sign, self.random_sensitivity.p)

    @property
    def found(self) -> bool:
        """Whether the target depends on the concept, at a family-wise error rate of 5%."""
        return self.p_adjusted < ALPHA

    def corrected(self, p: float) -> "TcavCell":
        """The same cell with its adjusted p."""
        return replace(self, p_adjusted=p)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "concept": self.concept,
            "site": self.site,
            "score": self.score.to_json(),
            "sensitivity": self.sensitivity.to_json(),
            "p_sign": self.p_sign,
            "random_score": self.random_score.to_json(),
            "random_sensitivity": self.random_sensitivity.to_json(),
            "scale": self.scale,
            "sensitivities": self.sensitivities.tolist(),
            "p": self.p,
            "p_adjusted": self.p_adjusted,
        }


@dataclass(frozen=True, eq=False)
class Tcav:
    """TCAV scores of concepts at sites.

    Attributes:
        cells: one a concept and site.
        target: what was differentiated.
        prompts: the texts.
        groups: of the prompts.
        values: the target on each prompt, `[prompt]`.
        provenance: model, method, positions, seed, versions.
    """

    cells: tuple[TcavCell, ...]
    target: str
    prompts: tuple[str, ...]
    groups: tuple[str, ...]
    values: Floats
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def at(self, site: Site | int | str, concept: str | None = None) -> TcavCell:
        """The cell of a site (and of a concept, where there are several).

        Raises:
            MethodError: no such cell, or several.
        """
        wanted = str(Site.parse(site))
        found = [c for c in self.cells if c.site == wanted and concept in (None, c.concept)]
        if len(found) != 1:
            there = ", ".join(f"{c.concept} {c.site}" for c in self.cells)
            raise MethodError(f"{len(found)} cells at {wanted}; there are: {there}")
        return found[0]

    @property
    def found(self) -> tuple[TcavCell, ...]:
        """Cells where the target depends on the concept, after correction."""
        return tuple(cell for cell in self.cells if cell.found)

    def table(self) -> str:
        """All cells as a markdown table."""
        return markdown(*self._rows())

    def summary(self) -> str:
        """What was found, in a few lines of plain text."""
        n = len({*self.groups})
        lines = [
            f"{self.target} on {len(self.prompts)} prompts in {n} groups: "
            f"{len(self.found)} of {len(self.cells)} concept x site cells at 5% family-wise"
        ]
        ceiling = [c for c in self.cells if c.random_score.q95 >= 0.45]
        if ceiling:
            lines.append(
                f"at {len(ceiling)} of them vectors fitted to permuted labels score within 0.05 of "
                "0 or 1 in a twentieth of cases or more: the sign count alone says little there"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "target": self.target,
            "cells": [cell.to_json() for cell in self.cells],
            "prompts": list(self.prompts),
            "groups": list(self.groups),
            "values": self.values.tolist(),
            "provenance": dict(self.provenance),
        }

    def __repr__(self) -> str:
        return f"Tcav({self.summary()})"

    def _repr_html_(self) -> str:
        return html_table("TCAV", self.summary(), *self._rows())

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        head = [
            "concept", "site", "TCAV score", "random vectors |score - 0.5|, 95%", "p sign",
            "nats per strength", "p random", "p, Holm",
        ]  # fmt: skip
        return head, [
            [
                c.concept,
                c.site,
                str(c.score),
                f"{c.random_score.q95:.2f}",
                f"{c.p_sign:.3g}",
                str(c.sensitivity),
                f"{c.random_sensitivity.p:.3g}",
                f"{c.p_adjusted:.3g}{' *' if c.found else ''}",
            ]
            for c in self.cells
        ]

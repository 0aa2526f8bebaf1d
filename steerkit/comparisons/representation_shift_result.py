"""What `measure_representation_shift` found: each concept's shift, beyond that of all states."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from steerkit.direction import Direction
from steerkit.errors import MethodError
from steerkit.lenses.tables import html_table, markdown
from steerkit.protocols import ModelInfo
from steerkit.site import Site
from steerkit.statistics import Estimate, Null

PAPER = "arXiv:2501.03012; semi-NMF: Ding, Li and Jordan 2010, IEEE PAMI 32, 45"
SAME = 1e-6
"""Shifts below this fraction of the states' typical size are rounding."""
LEVEL = 0.05
"""Family-wise level at which a shift counts as found."""


@dataclass(frozen=True)
class ConceptShift:
    """One concept of the first model, and how its states moved.

    Attributes:
        index: which concept.
        n_fit: states it was fitted on.
        n_score: states that score it, of other groups.
        size: norm of its shift vector, in activation units.
        along: how far the scored states move along what its shift has beyond the global one, less
            how far all states do; 0 where the shift is only global. Activation units.
        null: the same for random groups of states of equal size.
        adjusted_p: Holm's, over all concepts.
        consistency: mean cosine of every two states' shifts. A global shift alone makes it 1.
        consistency_random: of random groups of states of equal size.
        consistency_permuted: with the second model's states of other prompts.
        match: the second model's concept that goes with it, or -1.
        cosine: of the two concepts, each around its model's mean.
        recovery: gain in cosine to the matched concept by adding the shift vector, relative. Nearly
            a tautology: it succeeds wherever clusters persist.
        recovery_global: by adding the global shift instead.
        recovery_random: by adding the mean shift of as many random states.
        words: what the first model's unembedding reads from the concept.
        shift_words: from its shift beyond the global one.
        overlap: fraction of the first words of concept plus shift that are also those of the
            matched concept; NaN without words.
        overlap_plain: of the concept without a shift.
        overlap_global: of the concept plus the global shift.
    """

    index: int
    n_fit: int
    n_score: int
    size: float
    along: Estimate
    null: Null
    adjusted_p: float
    consistency: float
    consistency_random: float
    consistency_permuted: float
    match: int
    cosine: float
    recovery: float
    recovery_global: float
    recovery_random: float
    words: tuple[str, ...] = ()
    shift_words: tuple[str, ...] = ()
    overlap: float = float("nan")
    overlap_plain: float = float("nan")
    overlap_global: float = float("nan")

    @property
    def found(self) -> bool:
        """Whether its states move along its shift beyond the global one."""
        return self.adjusted_p <= LEVEL


@dataclass(frozen=True, eq=False)
class RepresentationShift:
    """Shifts between two models' states at one site, concept by concept.

    Attributes:
        concepts: every concept, scored on the half of the groups that it was not fitted on.
        global_shift: mean of b - a on the fitted half, `[d_model]`.
        shifts: mean of b - a over each concept's states, `[concept d_model]`.
        vectors: the concepts, in the first model's states, `[concept d_model]`.
        matched: the second model's concept that goes with each, NaN where none does.
        gain: fraction of the scored states' squared shift around the global one that the
            concepts' own shifts explain; negative where they explain nothing.
        beyond: `observed` beside random groups of equal size: the test of the whole.
        observed: mean over scored states of shift beyond global, times their concept's; squared
            activation units.
        excess: the same with an interval that resamples the scored groups; the shifts, fitted on
            other groups, stay.
        largest: largest entry of |b - a|.
        typical: mean distance of the first model's states from their mean.
        stability: mean cosine of matched concepts when the dictionary starts from other seeds.
        n_fit: rows fitted on.
        n_score: rows scored.
        n_groups: groups in both halves.
        method: of the dictionary.
        members: rows that score each concept.
        prompts: texts of all rows.
        site: where.
        info: the first model, whose directions these are.
        pooling: which tokens became rows.
        provenance: both models, versions, seed.
    """

    concepts: tuple[ConceptShift, ...]
    global_shift: Float[np.ndarray, "d_model"]
    shifts: Float[np.ndarray, "concept d_model"]
    vectors: Float[np.ndarray, "concept d_model"]
    matched: Float[np.ndarray, "concept d_model"]
    gain: float
    beyond: Null
    observed: float
    excess: Estimate
    largest: float
    typical: float
    stability: float
    n_fit: int
    n_score: int
    n_groups: int
    method: str
    members: tuple[tuple[int, ...], ...]
    prompts: tuple[str, ...] = ()
    site: Site | None = None
    info: ModelInfo | None = None
    pooling: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unchanged(self) -> bool:
        """No state moved, to rounding."""
        return self.largest <= SAME * self.typical

    @property
    def beyond_global(self) -> bool:
        """Whether concepts move differently: the test of the whole, at 5%."""
        return not self.unchanged and self.beyond.p <= LEVEL

    def direction(self, concept: int | None, *, beyond_global: bool = True) -> Direction:
        """A concept's shift vector, to steer the first model by; strength 1 is the whole shift.

        Args:
            concept: its index, or None for the shift of all states.
            beyond_global: less the shift of all states; without effect on that itself.

        Raises:
            MethodError: no such concept, or states that came without a model.
            DirectionError: a shift of zero.
        """
        if self.info is None or self.site is None:
            raise MethodError(
                "these shifts were taken from bare states; measure_representation_shift knows the "
                "model and site that a direction needs"
            )
        if concept is None:
            vector, state, what = self.global_shift, self.vectors.mean(0), "all states"
        elif 0 <= concept < len(self.concepts):
            vector = self.shifts[concept] - (self.global_shift if beyond_global else 0)
            state, what = self.vectors[concept], f"concept {concept}"
        else:
            raise MethodError(f"no concept {concept}; there are {len(self.concepts)}, from 0")
        size = float(np.linalg.norm(vector))
        unit = vector / size if size else vector + 1 / np.sqrt(len(vector))
        start = float(state @ unit)
        return Direction(
            unit=torch.from_numpy(unit).float(),
            scale=size,
            site=self.site,
            method="representation_shift",
            concept=f"shift of {what}",
            positive_mean=start + size,
            negative_mean=start,
            model=self.info,
            pooling=self.pooling,
            provenance={
                **self.provenance,
                "beyond_global": beyond_global and concept is not None,
                "dictionary": self.method,
            },
        )

    def table(self) -> str:
        """One row a concept, as markdown."""
        return markdown(*self._rows())

    def summary(self) -> str:
        """What was found, in a few lines of plain text."""
        a, b = (self.provenance.get(k, {}).get("name", k) for k in ("a", "b"))
        lines = [
            f"{a} to {b} at {self.site}: {len(self.concepts)} concepts fitted on {self.n_fit} "
            f"states, scored on {self.n_score} of other groups"
        ]
        if self.unchanged:
            return "\n".join([*lines, "no state moved: unchanged"])
        share = float(np.linalg.norm(self.global_shift)) / self.typical
        lines.append(f"global shift: {share:.3g} of the states' mean distance from their mean")
        found = [str(c.index) for c in self.concepts if c.found]
        verdict = (
            f"concepts move differently; by themselves: {', '.join(found) or 'none'}"
            if self.beyond_global
            else "nothing beyond the global shift"
        )
        lines.append(
            f"{verdict} (p = {self.beyond.p:.3g} against random groups of equal size; their own "
            f"shifts explain {self.gain:.3g} of what the global one leaves)"
        )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "paper": PAPER,
            "units": {"along": "activation units", "gain": "fraction of squared shift"},
            "concepts": [{**asdict(c), "found": c.found} for c in self.concepts],
            "global_shift": self.global_shift.tolist(),
            "shifts": self.shifts.tolist(),
            "vectors": self.vectors.tolist(),
            "matched": self.matched.tolist(),
            "gain": self.gain,
            "beyond": self.beyond.to_json(),
            "observed": self.observed,
            "excess": self.excess.to_json(),
            "largest": self.largest,
            "typical": self.typical,
            "stability": self.stability,
            "n_fit": self.n_fit,
            "n_score": self.n_score,
            "n_groups": self.n_groups,
            "method": self.method,
            "members": [list(m) for m in self.members],
            "prompts": list(self.prompts),
            "site": str(self.site) if self.site else None,
            "pooling": self.pooling,
            "unchanged": self.unchanged,
            "beyond_global": self.beyond_global,
            "provenance": dict(self.provenance),
        }

    def __repr__(self) -> str:
        return f"RepresentationShift({self.summary()})"

    def _repr_html_(self) -> str:
        return html_table("Representation shift", self.summary(), *self._rows())

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        head = [
            "concept",
            "states fitted / scored",
            "shift",
            "along it, beyond global",
            "random groups (q95)",
            "p (Holm)",
            "consistency / random / permuted",
            "recovery / global / random",
            "reads as",
        ]
        rows = [
            [
                str(c.index),
                f"{c.n_fit} / {c.n_score}",
                f"{c.size:.3g}",
                str(c.along) if c.null.n else "too few states",
                f"{c.null.q95:.3g}",
                f"{c.adjusted_p:.3g}",
                f"{c.consistency:.2f} / {c.consistency_random:.2f} / {c.consistency_permuted:.2f}",
                f"{c.recovery:.3f} / {c.recovery_global:.3f} / {c.recovery_random:.3f}",
                " ".join(c.shift_words[:5]),
            ]
            for c in self.concepts
        ]
        return head, rows

"""What `steer_by_shift` found: how much of the way shift vectors take a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from steerkit.comparisons.representation_shift_result import LEVEL, PAPER
from steerkit.lenses.tables import html_table, markdown
from steerkit.site import Site
from steerkit.statistics import Estimate, Null

Kind = Literal["own", "global"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TITLES: Mapping[str, str] = {"own": "each concept's own shift", "global": "the shift of all states"}


@dataclass(frozen=True, eq=False)
class ShiftSteering:
    """The model before, steered by shift vectors, beside the model after.

    Attributes:
        site: where they are added, chosen on other prompts.
        positions: at which tokens, chosen likewise.
        kind: `own` (each prompt gets its concept's shift) or `global`, chosen likewise.
        closed: of either kind at that place, the fraction of KL(after || before) that is gone;
            1 is all of it, below 0 it grew.
        nulls: the chosen kind's beside random vectors of the same norms, by their shape.
        kl: KL to the model after, nats per token of its own answers: `plain`, `own`, `global`.
        behaviour: judge (and side) -> arm -> rate: `before`, `before, steered`,
            `before, random vectors`, `after`.
        tried: what was chosen from: place -> kind -> fraction closed, on the choosing prompts.
        n_choose: prompts that chose.
        n_report: prompts that all else is about.
        provenance: both models, versions, seed.
    """

    site: Site
    positions: str
    kind: Kind
    closed: Mapping[Kind, Estimate]
    nulls: Mapping[str, Null]
    kl: Mapping[str, Estimate]
    behaviour: Mapping[str, Mapping[str, Estimate]]
    tried: Mapping[str, Mapping[Kind, float]]
    n_choose: int
    n_report: int
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def p(self) -> float:
        """The larger of the p-values beside random vectors of either shape."""
        return max((n.p for n in self.nulls.values()), default=1.0)

    @property
    def works(self) -> bool:
        """Whether it takes KL away, and more than random vectors of the same norms do."""
        return self.closed[self.kind].low > 0 and self.p <= LEVEL

    def table(self) -> str:
        """One row a judge, as markdown."""
        return markdown(*self._rows())

    def summary(self) -> str:
        """What was found, in a few lines of plain text."""
        chance = ", ".join(f"{name} {n.q95:.3g}" for name, n in self.nulls.items())
        lines = [
            f"{TITLES[self.kind]}, added at {self.site} ({self.positions}), takes away "
            f"{self.closed[self.kind]} of KL(after || before), {self.kl['plain']} nats per token; "
            f"random vectors of equal norm at most {chance} (95th percentile), p = {self.p:.3g}"
        ]
        other: Kind = "global" if self.kind == "own" else "own"
        lines.append(f"{TITLES[other]} there: {self.closed[other]}")
        for name, arms in self.behaviour.items():
            lines.append(f"{name}: " + "; ".join(f"{arm} {e}" for arm, e in arms.items()))
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "paper": PAPER,
            "units": {"closed": "fraction of KL", "kl": "nats per token"},
            "site": str(self.site),
            "positions": self.positions,
            "kind": self.kind,
            "closed": {k: e.to_json() for k, e in self.closed.items()},
            "nulls": {k: n.to_json() for k, n in self.nulls.items()},
            "kl": {k: e.to_json() for k, e in self.kl.items()},
            "behaviour": {
                name: {arm: e.to_json() for arm, e in arms.items()}
                for name, arms in self.behaviour.items()
            },
            "tried": {place: dict(kinds) for place, kinds in self.tried.items()},
            "n_choose": self.n_choose,
            "n_report": self.n_report,
            "works": self.works,
            "provenance": dict(self.provenance),
        }

    def __repr__(self) -> str:
        return f"ShiftSteering({self.summary()})"

    def _repr_html_(self) -> str:
        return html_table("Steering by shift", self.summary(), *self._rows())

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        arms = list(next(iter(self.behaviour.values()), {}))
        return ["judged", *arms], [
            [name, *(str(found[arm]) for arm in arms)] for name, found in self.behaviour.items()
        ]

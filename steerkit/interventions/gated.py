"""An intervention under a condition."""

from dataclasses import dataclass, replace
from typing import Protocol

from steerkit.batch import Positions
from steerkit.direction import Direction
from steerkit.errors import InterventionError
from steerkit.interventions.when import When
from steerkit.program import Program
from steerkit.protocols import Intervention
from steerkit.site import Site


class Described(Intervention, Protocol):
    """An intervention that knows its directions and says what it does."""

    @property
    def directions(self) -> tuple[Direction, ...]:
        """What it reads and writes."""
        ...

    def describe(self) -> str:
        """One line for tables."""
        ...


@dataclass(frozen=True, eq=False)
class Gated:
    """`intervention` where `condition` holds, and the untouched stream elsewhere.

    Usually made by `intervention.when(condition)`.

    Raises:
        InterventionError: a site before the condition's; an intervention that has a condition
            already; a token's condition for several interventions in order, of which later
            ones would be asked about a stream that earlier ones have changed.
    """

    intervention: Described
    condition: When

    def __post_init__(self) -> None:
        if not isinstance(self.condition, When):
            raise InterventionError(
                f"when takes a condition such as When(direction, above=0.2), got a "
                f"{type(self.condition).__name__}"
            )
        first, where = self.intervention.sites[0], self.condition.where
        if where is not None and first < where:
            raise InterventionError(
                f"an intervention at {first} cannot wait for a condition that is decided at "
                f"{where}, later in the same pass; read the condition at {first} or before "
                "(site=), or act later (sites=)"
            )
        for site in self.intervention.sites:
            groups = self.intervention.lower(site).groups
            if any(gate for group in groups for gate in group.gates):
                raise InterventionError(
                    f"'{self.intervention}' has a condition already; an intervention takes one"
                )
            if where is None and len(groups) > 1:
                raise InterventionError(
                    f"'{self.intervention}' acts several times at {site}, and a condition "
                    "on='token' would be asked again about the changed stream; give each part "
                    "its own condition"
                )

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where it acts, and where its condition is decided."""
        where = self.condition.where
        return tuple(sorted({*self.intervention.sites, *([] if where is None else [where])}))

    @property
    def positions(self) -> Positions:
        """Those of the intervention; the condition narrows them."""
        return self.intervention.positions

    @property
    def strength(self) -> float:
        """That of the intervention."""
        return self.intervention.strength

    @property
    def fingerprint(self) -> str | None:
        """That of the intervention, else that of the condition's direction."""
        own = self.intervention.fingerprint
        return self.condition.direction.fingerprint if own is None else own

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Those of the intervention, and the condition's."""
        return (*self.intervention.directions, self.condition.direction)

    def lower(self, site: Site) -> Program:
        """The intervention's program with its terms gated, and the latch where it is decided.

        Raises:
            InterventionError: a site it has nothing to do with.
        """
        if site not in self.sites:
            raise InterventionError(
                f"this intervention does not act at {site}, but at "
                f"{', '.join(map(str, self.sites))}"
            )
        acts = site in self.intervention.sites
        inner = self.intervention.lower(site) if acts else Program()
        gate = self.condition.gate()
        groups = tuple(replace(group, gates=(gate,) * len(group)) for group in inner.groups)
        decided = site == self.condition.where and bool(self.strength)
        return Program(groups, (*inner.latches, *([self.condition.latch()] if decided else [])))

    def describe(self) -> str:
        """One line for tables: the intervention and its condition."""
        return f"{self.intervention.describe()}, when {self.condition}"

    def __str__(self) -> str:
        return self.describe()

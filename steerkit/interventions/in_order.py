"""Interventions one after another at the same sites."""

from dataclasses import dataclass
from functools import reduce

from steerkit.batch import Positions
from steerkit.direction import Direction
from steerkit.errors import InterventionError
from steerkit.interventions.gated import Described, Gated
from steerkit.interventions.when import When
from steerkit.program import Program
from steerkit.site import Site


@dataclass(frozen=True, init=False, eq=False)
class InOrder:
    """Interventions that each read what the one before left; `InOrder(Ablate(a), Add(b))`.

    Given side by side to one `with_`, interventions read the same incoming stream; in order,
    the same as views stacked one on another. A condition on the prompt that a part has is
    decided before all parts of its site.

    Raises:
        InterventionError: nothing given, something that is no intervention of steerkit's, or
            parts that belong to different models.
    """

    parts: tuple[Described, ...]

    def __init__(self, *parts: Described) -> None:
        for part in parts:
            if not callable(getattr(part, "lower", None)) or not hasattr(part, "directions"):
                raise InterventionError(
                    f"InOrder takes interventions, got a {type(part).__name__}; such as "
                    "InOrder(Ablate(a), Add(b))"
                )
        if not parts:
            raise InterventionError("InOrder was given no interventions")
        models = {part.fingerprint for part in parts} - {None}
        if len(models) > 1:
            raise InterventionError(
                f"the parts of InOrder belong to different models: "
                f"{', '.join(sorted(str(model)[:12] for model in models))}; extract them on one"
            )
        object.__setattr__(self, "parts", parts)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site of every part, in forward order."""
        return tuple(sorted({site for part in self.parts for site in part.sites}))

    @property
    def positions(self) -> Positions:
        """Those of the parts where they agree, else all; each part keeps to its own."""
        first = self.parts[0].positions
        return first if all(part.positions == first for part in self.parts) else Positions()

    @property
    def strength(self) -> float:
        """1, or 0 where no part does anything; each part has its own."""
        return float(any(part.strength for part in self.parts))

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the model of the first part that knows its own."""
        known = [part.fingerprint for part in self.parts if part.fingerprint is not None]
        return known[0] if known else None

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Those of all parts."""
        return tuple(direction for part in self.parts for direction in part.directions)

    def when(self, condition: When) -> Gated:
        """All parts where a condition on the prompt holds.

        Raises:
            InterventionError: a condition that would be decided too late, or at every token.
        """
        return Gated(self, condition)

    def lower(self, site: Site) -> Program:
        """The programs of the parts at a site, one after another.

        Raises:
            InterventionError: a site that no part acts on.
        """
        if site not in self.sites:
            raise InterventionError(
                f"these interventions do not act at {site}, but at "
                f"{', '.join(map(str, self.sites))}"
            )
        programs = [part.lower(site) for part in self.parts if site in part.sites]
        return reduce(Program.then, programs)

    def describe(self) -> str:
        """One line for tables: the parts in order."""
        return "; then ".join(part.describe() for part in self.parts)

    def __str__(self) -> str:
        return self.describe()

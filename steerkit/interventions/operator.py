"""What all operators share: directions, a strength, sites and positions, one group of terms."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.batch import Positions
from steerkit.direction import Direction
from steerkit.errors import InterventionError
from steerkit.program import Group, Opcode, Program
from steerkit.registry import Registry
from steerkit.site import Site

if TYPE_CHECKING:
    from steerkit.interventions.gated import Gated
    from steerkit.interventions.when import When

PositionsLike = Positions | str | int | Iterable[int] | Tensor
"""A rule's name, an index or several, a boolean mask `[prompt pos]`, or `Positions`."""
SitesLike = Site | str | int | Iterable[Site | str | int] | None
"""A site, its text, a layer (its resid_post), several of them, or None: the direction's own.

`range(model.info.n_layers)` is every resid_post; `sites_of` lists other streams.
"""
SMALLEST_SINGULAR_VALUE = 1e-3
"""Of a matrix of units; below it, one direction is a combination of the others and float32
rounding would be magnified a thousandfold."""


class Operator(ABC):
    """An intervention, mostly along directions. Subclasses are frozen dataclasses.

    Attributes:
        strength: interpolates from the stream (0) to the operator's result (1), and beyond;
            where a line between the two is not meant, the operator says so.
        positions: the tokens it acts on.
        sites: the sites it acts on, in forward order.
    """

    name: ClassVar[str]
    strength: float
    positions: Positions
    sites: tuple[Site, ...]

    @property
    @abstractmethod
    def directions(self) -> tuple[Direction, ...]:
        """The directions it reads or writes, jointly; none where it has matrices of its own."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What else the constructor takes, by name, as plain JSON values."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What the constructor takes as tensors, by name."""
        return {}

    @abstractmethod
    def group(self) -> Group:
        """Its terms at full `strength`, for a non-zero one."""

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the model it was made for; None where that is not known."""
        return self.directions[0].fingerprint if self.directions else None

    @property
    def subject(self) -> str:
        """What it is about, in words."""
        return " and ".join(dict.fromkeys(d.concept for d in self.directions))

    def when(self, condition: "When") -> "Gated":
        """This intervention where a condition holds, and the untouched stream elsewhere.

        Raises:
            InterventionError: a condition that would be decided too late.
        """
        from steerkit.interventions.gated import Gated

        return Gated(self, condition)

    def lower(self, site: Site) -> Program:
        """The program at one of its sites; empty at strength 0, which touches nothing.

        Raises:
            InterventionError: a site it does not act on.
        """
        if site not in self.sites:
            raise InterventionError(
                f"this intervention does not act at {site}, but at "
                f"{', '.join(map(str, self.sites))}"
            )
        return Program((self.group(),)) if self.strength else Program()

    def describe(self) -> str:
        """One line for tables: operator, concept, sites, positions, settings, strength."""
        words = f"{self.name} {self.subject}".strip()
        parts = [f"{words} at {_listed(self.sites)}", str(self.positions)]
        parts += [f"{k} {_brief(v)}" for k, v in self.settings.items() if v is not None]
        if self.strength != 1:
            parts.append(f"strength {self.strength:g}")
        return ", ".join(parts)

    def __str__(self) -> str:
        return self.describe()


OPERATORS: Registry[type[Operator]] = Registry(
    "operator", "steerkit.interventions", InterventionError
)
"""Operators by name, for command lines and searches."""


def place(
    operator: Operator,
    directions: Sequence[Any],
    strength: float,
    positions: PositionsLike,
    sites: SitesLike,
) -> None:
    """Check and set what all operators share; called while a frozen one is being made.

    Raises:
        InterventionError: not directions, of several models or sites, strength not finite,
            an unknown position rule, no sites.
    """
    for direction in directions:
        if not isinstance(direction, Direction):
            hint = (
                "it holds several; choose one, such as directions.best"
                if isinstance(direction, Sequence) and not isinstance(direction, str)
                else "directions come from extract or Direction.load"
            )
            raise InterventionError(
                f"{operator.name} takes a Direction, got a {type(direction).__name__}: {hint}"
            )
    models = {d.fingerprint: d.model.name for d in directions}
    if len(models) > 1:
        taken = ", ".join(f"{name} ({print_[:12]})" for print_, name in models.items())
        raise InterventionError(
            f"the directions of one {operator.name} were taken on different models: {taken}; "
            "extract them on the same one"
        )
    chosen = _sites(operator.name, sites, [d.site for d in directions])
    object.__setattr__(operator, "strength", finite("strength", strength))
    object.__setattr__(operator, "positions", Positions.of(positions))
    object.__setattr__(operator, "sites", chosen)


def finite(name: str, value: float) -> float:
    """The value as a float, refused where it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InterventionError(f"{name} is a finite number; got {value!r}")
    return float(value)


def units(directions: Sequence[Direction]) -> Float[Tensor, "direction d_model"]:
    """The unit vectors in float64, normalised once more: float32 units are off by 1e-7."""
    rows = torch.stack([d.unit.double() for d in directions])
    return rows / rows.norm(dim=1, keepdim=True)


def check_independent(name: str, directions: Sequence[Direction]) -> None:
    """Refuse directions of which one is a combination of the others.

    Raises:
        InterventionError: naming the closest pair.
    """
    rows = units(directions)
    if len(rows) > rows.shape[1] or torch.linalg.svdvals(rows)[-1] < SMALLEST_SINGULAR_VALUE:
        cosines = (rows @ rows.mT).abs().fill_diagonal_(0)
        i, j = divmod(int(cosines.argmax()), len(rows))
        raise InterventionError(
            f"the {len(rows)} directions to {name} are linearly dependent; the closest pair is "
            f"{directions[i]} and {directions[j]} (numbers {i} and {j}), with cosine "
            f"{float(cosines[i, j]):.4f}: leave one out"
        )


def matrix(name: str, value: Any, shape: tuple[int | None, ...]) -> Tensor:
    """The value as a finite tensor on the CPU, refused where its shape is another.

    Raises:
        InterventionError: naming the shape; None in `shape` stands for any size.
    """
    found = torch.as_tensor(value).detach().cpu().clone()
    fits = found.ndim == len(shape) and all(
        n in (None, size) for n, size in zip(shape, found.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise InterventionError(f"{name} has shape {tuple(found.shape)}, expected ({wanted})")
    if not torch.isfinite(found).all():
        raise InterventionError(f"{name} is not finite everywhere; look at where it came from")
    return found


def terms(
    operator: Operator,
    opcode: Opcode,
    write: Float[Tensor, "term d_model"],
    params: Sequence[Sequence[float]],
    offset: Sequence[float] | None = None,
    read: Float[Tensor, "term d_model"] | None = None,
) -> Group:
    """A group that reads along the operator's directions, all terms at its positions."""
    read = units(operator.directions) if read is None else read.double()
    n = len(read)
    return Group(
        opcodes=(opcode,) * n,
        read=read,
        offset=torch.tensor(offset or [0.0] * n, dtype=torch.float64),
        write=write.double(),
        params=torch.tensor(params, dtype=torch.float64),
        positions=(operator.positions,) * n,
    )


def from_settings(
    name: str,
    directions: Sequence[Direction],
    settings: Mapping[str, Any],
    *,
    strength: float = 1.0,
    positions: PositionsLike = "all",
    sites: SitesLike = None,
) -> Operator:
    """An operator by its registered name: what command lines and files use.

    Raises:
        InterventionError: an unknown operator, or settings that it does not take.
    """
    make: Any = OPERATORS[name]
    given = [directions[0] if len(directions) == 1 else tuple(directions)] if directions else []
    try:
        made: Operator = make(
            *given, **settings, strength=strength, positions=positions, sites=sites
        )
    except TypeError as error:
        raise InterventionError(
            f"the operator '{name}' does not take these settings: "
            f"{', '.join(map(str, settings)) or 'none'} ({error})"
        ) from error
    return made


def _sites(name: str, sites: SitesLike, own: Sequence[Site]) -> tuple[Site, ...]:
    if sites is None and own:
        if len(set(own)) > 1:
            raise InterventionError(
                f"the directions of one {name} were read at different sites "
                f"({', '.join(map(str, own))}); say where to act with sites="
            )
        return (own[0],)
    listed = [sites] if isinstance(sites, Site | str | int) else list(sites or ())
    chosen = tuple(sorted({Site.parse(site) for site in listed}))
    if not chosen:
        hint = "leave sites out for the direction's own" if own else "say where to act with sites="
        raise InterventionError(f"{name} was given no sites; {hint}")
    return chosen


def _listed(sites: Sequence[Site]) -> str:
    """Short even for every layer: `resid_post@0-31`."""
    streams: dict[str, list[int]] = {}
    for site in sites:
        streams.setdefault(site.stream, []).append(site.layer)
    words = []
    for stream, layers in streams.items():
        dense = len(layers) > 2 and layers == list(range(layers[0], layers[-1] + 1))
        numbers = f"{layers[0]}-{layers[-1]}" if dense else ",".join(map(str, layers))
        words.append(f"{stream}@{numbers}")
    return " ".join(words)


def _brief(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

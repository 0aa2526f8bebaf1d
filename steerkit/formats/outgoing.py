"""Directions and operators as what a foreign file can say: one vector added or set at a site."""

from collections.abc import Iterable

from steerkit.direction import Direction
from steerkit.errors import InterventionError
from steerkit.formats.format import Loss, Outgoing
from steerkit.interventions import Ablate, Add, Affine, Clamp, Operator
from steerkit.interventions.artefact import Steering
from steerkit.interventions.level import projection

Vectors = Direction | Steering | Iterable[Direction | Steering]
"""What can be written: directions (added at strength 1), or operators as they act."""


def outgoing(vectors: Vectors) -> tuple[list[Outgoing], list[Loss]]:
    """One entry for each vector and site, and what of the operators no file can say.

    Raises:
        InterventionError: nothing, or an operator that neither adds nor sets a projection.
    """
    listed = [vectors] if isinstance(vectors, Direction | Steering) else list(vectors)
    if not listed:
        raise InterventionError("there are no directions to write")
    items: list[Outgoing] = []
    losses: list[Loss] = []
    for one in listed:
        if isinstance(one, Direction):
            items.append(Outgoing(one, one.site))
            continue
        if not isinstance(one, Operator):
            raise InterventionError(
                f"a {type(one).__name__} acts under a condition or in an order, which no foreign "
                "format holds; save it with steerkit.interventions.save_steering"
            )
        items += _acts(one)
        if str(one.positions) != "all":
            why = "the file does not say where; its tool decides"
            losses.append(Loss(f"positions '{one.positions}' of {one.describe()}", why))
    return items, losses


def _acts(operator: Operator) -> list[Outgoing]:
    """An operator as additions or set projections."""
    if not operator.strength:
        raise InterventionError(f"'{operator.describe()}' does nothing at strength 0; leave it out")
    if isinstance(operator, Add):
        return [Outgoing(operator.direction, s, operator.strength) for s in operator.sites]
    value: float | None = None
    if operator.strength == 1 and len(operator.directions) == 1:
        direction = operator.directions[0]
        if isinstance(operator, Ablate):
            value = projection(operator.reference, direction)
        elif isinstance(operator, Clamp) and operator.edges[0] == operator.edges[1]:
            value = operator.edges[0]
        elif isinstance(operator, Affine) and operator.gain == 0:
            value = operator.bias * direction.scale
    if value is None:
        raise InterventionError(
            f"'{operator.describe()}' neither adds a vector nor sets one projection, so no foreign "
            "format holds it; save it with steerkit.interventions.save_steering"
        )
    return [Outgoing(direction, s, 1.0, "set", value) for s in operator.sites]

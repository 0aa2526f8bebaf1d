"""Concept-cleaned directions: what is left of a direction without other concepts.

v_c = v - A (A'A + r I)^-1 A'v for atoms A of other concepts. Source: arXiv:2603.18280.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.direction import Direction
from steerkit.errors import ActivationError, DirectionError
from steerkit.extraction.pairs import label_pairs

REGULARISATION = 0.01
"""The published penalty. Atoms have norm 1 here, so it means the same in every model."""
NOTHING = 1e-4
"""A direction of which less than this is left lies in the span of the atoms."""
ENDLESS = 1.0
"""A penalty above this is there to leave most of the atoms where they are."""


def without_atoms(
    vector: Float[Tensor, "d_model"],
    atoms: Float[Tensor, "d_model atom"],
    *,
    regularisation: float = REGULARISATION,
) -> Float[Tensor, "d_model"]:
    """v - A (A'A + r I)^-1 A'v: the ridge regression of a vector on atoms, taken away.

    At r -> 0 nothing of any atom is left (parallel atoms count once); at r -> infinity the vector
    stays as it is. An atom of norm 1 by itself is left at r / (1 + r) of what it was. In float64.

    Raises:
        DirectionError: a negative penalty, or atoms of another width.

    Source: arXiv:2603.18280, for atoms of norm 1.
    """
    if regularisation < 0 or atoms.ndim != 2 or atoms.shape[0] != vector.shape[0]:
        raise DirectionError(
            f"cleaning takes a penalty of at least 0 and atoms [{vector.shape[0]}, atom]; got "
            f"{regularisation} and {tuple(atoms.shape)}"
        )
    v, a = vector.double(), atoms.double()
    # Through singular values, so that parallel atoms and a penalty of 0 are no trouble.
    left, size, _ = torch.linalg.svd(a, full_matrices=False)
    real = size > 1e-10 * size.max() if len(size) else size > 0
    left, size = left[:, real], size[real]
    return v - left @ ((size**2 / (size**2 + regularisation)) * (left.T @ v))


def concept_atoms(
    states: Float[Tensor, "row d_model"], labels: Sequence[int], groups: Sequence[str]
) -> Float[Tensor, "d_model atom"]:
    """Two atoms of a concept, each of norm 1: the mean difference, and the first component.

    The component is the axis along which positive-minus-negative differences vary most around
    their mean: within pairs where there are any, else of both sides around their own means.
    Atoms that are zero are left out.

    Raises:
        ActivationError: a side is missing.
    """
    y = torch.as_tensor(labels)
    x = states.double()
    if len(y) != len(x) or not (y == 1).any() or not (y == 0).any():
        raise ActivationError(
            f"atoms of a concept come from two sides; got {int((y == 1).sum())} positive and "
            f"{int((y == 0).sum())} negative of {len(x)} rows"
        )
    means = [x[y == side].mean(0) for side in (1, 0)]
    pairs = label_pairs(groups, y)
    if len(pairs) > 1:
        apart = (x[pairs[:, 0]] - x[pairs[:, 1]]) * (2 * y[pairs[:, 0]] - 1)[:, None]
        around = apart - apart.mean(0)
    else:
        around = torch.cat([x[y == 1] - means[0], x[y == 0] - means[1]])
    axis = torch.linalg.svd(around, full_matrices=False)
    found = [means[0] - means[1], axis.S[0] * axis.Vh[0]]
    size = float(x.norm(dim=1).mean())
    kept = [v / v.norm() for v in found if float(v.norm()) > 1e-6 * size]
    return torch.stack(kept, 1) if kept else x.new_zeros(x.shape[1], 0)


def clean_direction(
    direction: Direction,
    atoms: Float[Tensor, "d_model atom"],
    positive: Float[Tensor, "row d_model"],
    negative: Float[Tensor, "row d_model"],
    *,
    regularisation: float = REGULARISATION,
) -> Direction:
    """The direction without atoms of other concepts, with class means and scale of its own.

    Args:
        direction: what to clean.
        atoms: of other concepts at the same site, see `concept_atoms`.
        positive: states of the direction's positive class there; new class means come from them.
        negative: of its negative class.
        regularisation: of the regression on the atoms.

    Raises:
        DirectionError: less of it lies outside the span of the atoms than the penalty leaves
            inside (such a remainder, put back to norm 1, is the direction again); its classes
            no longer lie apart along it; a penalty or atoms that `without_atoms` refuses.

    Source: arXiv:2603.18280.
    """
    left = without_atoms(direction.unit, atoms, regularisation=regularisation)
    outside = without_atoms(direction.unit, atoms, regularisation=0.0)
    size = float(left.norm())
    # Of a direction inside the span the penalty leaves some, which at norm 1 is itself again.
    if float(outside.norm()) < max(NOTHING, float((left - outside).norm())) and (
        regularisation <= ENDLESS
    ):
        raise DirectionError(
            f"nothing is left of the {direction.method} direction at {direction.site}: it lies in "
            f"the span of {atoms.shape[1]} atoms of other concepts"
        )
    unit = left / size
    up, down = (float((x.double() @ unit).mean()) for x in (positive, negative))
    return replace(
        direction,
        unit=unit.float(),
        scale=up - down,
        positive_mean=up,
        negative_mean=down,
        method=f"{direction.method}, cleaned",
        polarity=0,
        scores=None,
        examples=((), ()),
        tokens=((), ()),
        calibrations=(),
        effects=(),
        provenance={
            **direction.provenance,
            "cleaned": {
                "atoms": atoms.shape[1],
                "regularisation": regularisation,
                "left": size,
            },
        },
    )

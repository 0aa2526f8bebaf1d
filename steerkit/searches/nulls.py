"""Random directions under the same operator at the same size: what a search finds in nothing.

Three shapes. `isotropic`: uniform on the sphere. `covariance`: as the stream itself varies (a
random mixture of centred states). `covariance_orthogonal`: the same with the component along
the tested direction removed. Where few dimensions carry most of the variance, and the concept
is among them, covariance-shaped draws are weaker copies of the direction itself (`overlap`
says how close they come), and only the orthogonal ones say what other directions do.

A random direction is oriented like the real one (positives project higher), knows the class
means along itself, and its change of the stream is rescaled until the mean |delta h| is that
of the candidate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.batch import Positions
from steerkit.direction import Direction
from steerkit.errors import MethodError
from steerkit.program import Group, Opcode, Program
from steerkit.protocols import Intervention
from steerkit.searches.candidates import Candidate
from steerkit.searches.states import States
from steerkit.site import Site
from steerkit.statistics import Null, null

Shape = Literal["isotropic", "covariance", "covariance_orthogonal"]
SHAPES: tuple[Shape, ...] = get_args(Shape)


@dataclass(frozen=True)
class NullDraws:
    """An observed value beside what random directions gave, every draw kept.

    Attributes:
        name: the shape of the random directions, or what was searched.
        observed: the real direction's value, measured on the same prompts.
        draws: one value a random direction.
        overlap: mean |cosine| of the random directions with the real one.
        allowed: how many of the random directions meet the guard; None where not measured.
        size: mean |delta h| of the real and (to 0.1%) of every random direction.
    """

    name: str
    observed: float
    draws: tuple[float, ...]
    size: float = float("nan")
    overlap: float = float("nan")
    allowed: int | None = None

    @property
    def null(self) -> Null:
        """Mean, 95% quantile, maximum and p-value."""
        return null(self.name, self.observed, self.draws)

    @property
    def exceeds_all(self) -> bool:
        """Whether the observed value is above every draw."""
        return bool(self.draws) and self.observed > max(self.draws)

    def to_json(self) -> dict[str, object]:
        """A plain dictionary."""
        return {
            **self.null.to_json(),
            "observed": self.observed,
            "size": self.size,
            "overlap": self.overlap,
            "allowed": self.allowed,
            "exceeds_all": self.exceeds_all,
            "draws": list(self.draws),
        }


@dataclass(frozen=True, eq=False)
class Resized:
    """An intervention whose change of the stream is multiplied by `factor`.

    Exact for operators of one group, which all of ours are; `matched` measures either way.
    """

    inner: Intervention
    factor: float

    @property
    def sites(self) -> tuple[Site, ...]:
        """Those of the inner one."""
        return self.inner.sites

    @property
    def positions(self) -> Positions:
        """Those of the inner one."""
        return self.inner.positions

    @property
    def strength(self) -> float:
        """The inner strength times the factor."""
        return self.inner.strength * self.factor

    @property
    def fingerprint(self) -> str | None:
        """That of the inner one."""
        return self.inner.fingerprint

    def lower(self, site: Site) -> Program:
        """The inner program with its coefficients multiplied."""
        inner = self.inner.lower(site)
        return Program(tuple(_times(group, self.factor) for group in inner.groups), inner.latches)


def _times(group: Group, factor: float) -> Group:
    params = group.params.clone()
    for i, opcode in enumerate(group.opcodes):
        if opcode in (Opcode.CLAMP, Opcode.ACTIVATION, Opcode.TURN):
            params[i, 2] *= factor
        elif opcode == Opcode.AFFINE:
            params[i, :2] *= factor
        elif opcode == Opcode.CONSTANT:
            params[i, 0] *= factor
        else:
            raise MethodError(f"programs with the opcode {opcode.name} cannot be resized")
    return replace(group, params=params)


def random_directions(
    like: Direction,
    positive: Float[Tensor, "prompt d_model"],
    negative: Float[Tensor, "prompt d_model"],
    n: int,
    *,
    shape: Shape = "isotropic",
    apart_from: Sequence[Float[Tensor, "d_model"]] = (),
    seed: int = 0,
) -> list[Direction]:
    """Random directions at the site of `like`, with the class means along each.

    Args:
        like: gives site, scale and model.
        positive: states of the positive class at that site.
        negative: states of the negative class.
        n: how many.
        shape: see the module. Where all states are the same, as before the first block,
            all shapes are isotropic.
        apart_from: further vectors that orthogonal draws have nothing of.
        seed: of a local generator.
    """
    generator = torch.Generator().manual_seed(seed)
    a, b = positive.double(), negative.double()
    centred = torch.cat([a - a.mean(0), b - b.mean(0)])
    varies = float(centred.norm()) > 1e-6 * float(torch.cat([a, b]).norm())
    if shape != "isotropic" and varies:
        mix = torch.randn(n, len(centred), generator=generator, dtype=torch.float64)
        drawn = mix @ centred
        if shape == "covariance_orthogonal":
            known = torch.stack([like.unit.double(), *(v.double() for v in apart_from)], 1)
            # Singular vectors, because the known ones may be parallel or zero.
            basis, size, _ = torch.linalg.svd(known, full_matrices=False)
            basis = basis[:, size > 1e-6 * size[0]]
            drawn = drawn - (drawn @ basis) @ basis.T
    else:
        drawn = torch.randn(n, like.unit.shape[0], generator=generator, dtype=torch.float64)
    units = drawn / drawn.norm(dim=1, keepdim=True)
    up, down = units @ a.mean(0), units @ b.mean(0)
    sign = torch.where(up < down, -1.0, 1.0).double()
    return [
        replace(
            like,
            unit=(s * unit).float(),
            positive_mean=float(s * p),
            negative_mean=float(s * q),
            method=f"random ({shape})",
            polarity=0,
            scores=None,
            examples=((), ()),
            tokens=((), ()),
            provenance={"null": shape, "seed": seed, "draw": i},
            calibrations=(),
        )
        for i, (unit, p, q, s) in enumerate(zip(units, up, down, sign, strict=True))
    ]


def matched(
    candidate: Candidate, directions: Sequence[Direction], size: float, met: States
) -> list[Intervention]:
    """The candidate's operator with other directions, each resized to move the stream by `size`.

    A direction that the operator does not move at all (a satisfied clamp) stays as it is.
    """
    made = [Resized(candidate.with_direction(direction), 1.0) for direction in directions]
    # One step is exact for one group; more groups need a few.
    for _ in range(4):
        now = met.sizes(made)
        if all(x == 0 or abs(x / size - 1) < 1e-4 for x in now):
            break
        made = [
            replace(one, factor=one.factor * size / x) if x else one
            for one, x in zip(made, now, strict=True)
        ]
    return list(made)


def overlap(directions: Sequence[Direction], real: Direction) -> float:
    """Mean |cosine| of directions with the real one."""
    return float((torch.stack([d.unit for d in directions]) @ real.unit).abs().mean())

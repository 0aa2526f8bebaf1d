"""Rotations in a plane, by angles and to angles, against trigonometry written out."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from steerkit.errors import InterventionError
from steerkit.interventions import Rotate, When


def plane(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    """An orthonormal basis by Gram-Schmidt."""
    first = a.unit.double() / a.unit.double().norm()
    second = b.unit.double()
    second = second - (second @ first) * first
    return first, second / second.norm()


def polar(h: Tensor, a: Any, b: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Angle and radius in the plane, and what lies outside it."""
    first, second = plane(a, b)
    p, q = h @ first, h @ second
    rest = h - p[..., None] * first - q[..., None] * second
    return torch.atan2(q, p), (p**2 + q**2).sqrt(), rest


def built(angle: Tensor, radius: Tensor, rest: Tensor, a: Any, b: Any) -> Tensor:
    first, second = plane(a, b)
    x, y = radius * angle.cos(), radius * angle.sin()
    return rest + x[..., None] * first + y[..., None] * second


@pytest.mark.parametrize("degrees", [0.0, 37.0, 90.0, -120.0, 360.0])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_by_an_angle(
    direction: Any, steer: Any, batch: Any, h: Any, degrees: float, strength: float
) -> None:
    a, b = direction(0), direction(1)
    out = steer(Rotate([a, b], by=degrees, strength=strength), h)
    angle, radius, rest = polar(h, a, b)
    wanted = built(angle + strength * math.radians(degrees), radius, rest, a, b)
    torch.testing.assert_close(out[batch.mask], wanted[batch.mask], rtol=0, atol=1e-12)
    norms = out[batch.mask].norm(dim=-1)
    torch.testing.assert_close(norms, h[batch.mask].norm(dim=-1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("degrees", [0.0, 45.0, 180.0, -100.0, 725.0])
def test_to_an_angle(direction: Any, steer: Any, batch: Any, h: Any, degrees: float) -> None:
    a, b = direction(0), direction(1)
    out = steer(Rotate([a, b], to=degrees), h)
    angle, radius, rest = polar(h, a, b)
    wanted = built(torch.full_like(angle, math.radians(degrees)), radius, rest, a, b)
    torch.testing.assert_close(out[batch.mask], wanted[batch.mask], rtol=0, atol=1e-12)
    norms = out[batch.mask].norm(dim=-1)
    torch.testing.assert_close(norms, h[batch.mask].norm(dim=-1), rtol=1e-12, atol=0)
    again = steer(Rotate([a, b], to=degrees), out)
    torch.testing.assert_close(again[batch.mask], out[batch.mask], rtol=0, atol=1e-12)


def test_turns_compose_and_undo(direction: Any, steer: Any, h: Any) -> None:
    pair = [direction(0), direction(1)]
    twice = steer(Rotate(pair, by=70), steer(Rotate(pair, by=-30), h))
    torch.testing.assert_close(twice, steer(Rotate(pair, by=40), h), rtol=0, atol=1e-12)
    undone = steer(Rotate(pair, by=-30), steer(Rotate(pair, by=30), h))
    torch.testing.assert_close(undone, h, rtol=0, atol=1e-12)


def test_what_lies_outside_the_plane_does_not_move(
    direction: Any, steer: Any, batch: Any, h: Any
) -> None:
    a, b = direction(0), direction(1)
    first, second = plane(a, b)
    flat = h - (h @ first)[..., None] * first - (h @ second)[..., None] * second
    for angle in ({"by": 50}, {"to": 50}):
        torch.testing.assert_close(steer(Rotate([a, b], **angle), flat), flat, rtol=0, atol=1e-12)


def test_the_adaptive_variant_turns_only_what_points_along(
    direction: Any, steer: Any, batch: Any, h: Any
) -> None:
    a, b = direction(0), direction(1)
    rotate = Rotate([a, b], to=120)
    gated = rotate.when(When(a, above=0.0, measure="projection", on="token"))
    along = (h @ a.unit.double() >= 0) & batch.mask
    out = steer(gated, h)
    assert along.any() and not along[batch.mask].all()
    torch.testing.assert_close(out[along], steer(rotate, h)[along], rtol=0, atol=1e-13)
    assert torch.equal(out[~along], h[~along])


def test_refused(direction: Any) -> None:
    a, b = direction(0), direction(1)
    with pytest.raises(InterventionError, match="two directions of a plane, got 1"):
        Rotate([a], by=10)
    for angles in ({}, {"by": 1.0, "to": 2.0}):
        with pytest.raises(InterventionError, match="one angle in degrees"):
            Rotate([a, b], **angles)
    with pytest.raises(InterventionError, match="rotate between are linearly dependent"):
        Rotate([a, -a], by=10)
    with pytest.raises(InterventionError, match="by is a finite number"):
        Rotate([a, b], by=float("nan"))

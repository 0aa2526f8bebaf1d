"""Activation addition."""

from typing import Any

import pytest
import torch

from steerkit.interventions import Add

TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 5e-3}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("strength", [1.0, -2.5])
def test_equals_its_formula(
    direction: Any, steer: Any, batch: Any, h: Any, dtype: Any, strength: float
) -> None:
    d = direction()
    x = h.to(dtype)
    unit = d.unit.double() / d.unit.double().norm()
    wanted = torch.where(batch.mask[..., None], x.double() + strength * 4.0 * unit, x.double())
    error = (steer(Add(d, strength), x).double() - wanted).norm() / wanted.norm()
    assert error < TOLERANCE[dtype]


def test_strength_1_moves_a_negative_projection_to_the_positive_mean(
    direction: Any, steer: Any, batch: Any, h: Any
) -> None:
    d = direction()
    unit = d.unit.double()
    at_negative_mean = h + (d.negative_mean - h @ unit)[..., None] * unit
    moved = steer(Add(d), at_negative_mean) @ unit
    assert torch.allclose(moved[batch.mask], torch.tensor(d.positive_mean).double(), atol=1e-5)


def test_opposite_additions_cancel(direction: Any, steer: Any, h: Any) -> None:
    there = steer(Add(direction(), 2.0, positions="prompt"), h)
    back = steer(Add(direction(), -2.0, positions="prompt"), there)
    torch.testing.assert_close(back, h, rtol=0, atol=1e-14)


def test_says_what_it_does(direction: Any) -> None:
    assert str(Add(direction(), 2.0)) == "add refusal at resid_post@2, all, strength 2"

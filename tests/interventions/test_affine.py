"""Affine maps of the projection."""

from typing import Any

import pytest
import torch

from steerkit.errors import InterventionError
from steerkit.interventions import Ablate, Add, Affine

TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 5e-3}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("gain", "bias", "strength"), [(0.5, 1, 1), (-1, 0, 1), (3, -0.2, 0.4)])
def test_equals_its_formula(
    direction: Any,
    steer: Any,
    batch: Any,
    h: Any,
    dtype: Any,
    gain: float,
    bias: float,
    strength: float,
) -> None:
    d = direction()
    unit = d.unit.double() / d.unit.double().norm()
    x = h.to(dtype)
    exact = x.double()
    p = exact @ unit
    mapped = gain * p + bias * d.scale
    wanted = exact + strength * ((mapped - p) * batch.mask)[..., None] * unit
    out = steer(Affine(d, gain, bias, strength), x)
    assert (out.double() - wanted).norm() / wanted.norm() < TOLERANCE[dtype]


def test_a_reflection_undoes_itself(direction: Any, steer: Any, h: Any) -> None:
    reflect = Affine(direction(), -1)
    assert not torch.allclose(steer(reflect, h), h)
    torch.testing.assert_close(steer(reflect, steer(reflect, h)), h, rtol=0, atol=1e-13)


def test_holds_addition_and_ablation_as_special_cases(direction: Any, steer: Any, h: Any) -> None:
    d = direction()
    for affine, twin in [(Affine(d, 1, 2), Add(d, 2)), (Affine(d, 0), Ablate(d))]:
        torch.testing.assert_close(steer(affine, h), steer(twin, h), rtol=0, atol=1e-13)


def test_numbers_must_be_finite(direction: Any) -> None:
    with pytest.raises(InterventionError, match="gain is a finite number; got inf"):
        Affine(direction(), float("inf"))
    with pytest.raises(InterventionError, match="bias is a finite number; got 'one'"):
        Affine(direction(), 1, "one")  # type: ignore[arg-type]


def test_says_what_it_does(direction: Any) -> None:
    assert (
        str(Affine(direction(), 0.5, 1)) == "affine refusal at resid_post@2, all, gain 0.5, bias 1"
    )

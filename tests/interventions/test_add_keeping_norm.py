"""An addition that turns the stream and keeps its norm."""

from typing import Any

import pytest
import torch

from steerkit.interventions import AddKeepingNorm


@pytest.mark.parametrize("strength", [0.3, 1.0, -2.0])
def test_is_an_addition_scaled_back(
    direction: Any, steer: Any, batch: Any, h: Any, strength: float
) -> None:
    d = direction()
    unit = d.unit.double() / d.unit.double().norm()
    added = h + strength * d.scale * unit
    wanted = added * (h.norm(dim=-1) / added.norm(dim=-1))[..., None]
    out = steer(AddKeepingNorm(d, strength), h)
    torch.testing.assert_close(out[batch.mask], wanted[batch.mask], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_are_kept_in_every_dtype(
    direction: Any, steer: Any, batch: Any, h: Any, dtype: Any
) -> None:
    x = h.to(dtype)
    out = steer(AddKeepingNorm(direction(), 5.0), x)
    found, wanted = (y[batch.mask].double().norm(dim=-1) for y in (out, x))
    torch.testing.assert_close(found, wanted, rtol=1e-6 if dtype == torch.float32 else 5e-3, atol=0)


def test_a_strong_push_ends_at_the_direction(
    direction: Any, steer: Any, batch: Any, h: Any
) -> None:
    d = direction()
    out = steer(AddKeepingNorm(d, 1e6), h)[batch.mask]
    cosine = out @ d.unit.double() / out.norm(dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=1e-6)

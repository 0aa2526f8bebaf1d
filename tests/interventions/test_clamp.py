"""Clamps: projections onto an interval of projections."""

import math
from typing import Any

import pytest
import torch

from steerkit.errors import InterventionError
from steerkit.interventions import Clamp

TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 5e-3}
EDGES = [
    ({"low": "negative_mean"}, -1.0, math.inf),
    ({"high": "zero"}, -math.inf, 0.0),
    ({"low": "negative_mean", "high": 0.5}, -1.0, 0.5),
    ({"low": "zero", "high": "positive_mean"}, 0.0, 3.0),
    ({"low": 1, "high": 1}, 1.0, 1.0),
]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("strength", [1.0, 0.3])
@pytest.mark.parametrize(("edges", "low", "high"), EDGES)
def test_equals_its_formula(
    direction: Any,
    steer: Any,
    batch: Any,
    h: Any,
    dtype: Any,
    edges: Any,
    low: float,
    high: float,
    strength: float,
) -> None:
    d = direction()
    unit = d.unit.double() / d.unit.double().norm()
    x = h.to(dtype)
    exact = x.double()
    p = exact @ unit
    moved = exact + strength * (p.clamp(low, high) - p)[..., None] * unit
    wanted = torch.where(batch.mask[..., None], moved, exact)
    out = steer(Clamp(d, **edges, strength=strength), x)
    assert (out.double() - wanted).norm() / wanted.norm() < TOLERANCE[dtype]


@pytest.mark.parametrize(("edges", "low", "high"), EDGES)
def test_projects_onto_the_interval(
    direction: Any, steer: Any, batch: Any, h: Any, edges: Any, low: float, high: float
) -> None:
    d = direction()
    unit = d.unit.double() / d.unit.double().norm()
    clamp = Clamp(d, **edges)
    out = steer(clamp, h)
    p, q = (h @ unit)[batch.mask], (out @ unit)[batch.mask]
    assert ((q > low - 1e-12) & (q < high + 1e-12)).all()
    inside = (p >= low) & (p <= high)
    assert low == high or 0 < inside.sum() < len(inside), "both kinds of token are there"
    assert torch.equal(out[batch.mask][inside], h[batch.mask][inside]), "inside is left alone"
    torch.testing.assert_close(steer(clamp, out), out, rtol=0, atol=1e-12)


def test_equal_edges_are_ablation(direction: Any, steer: Any, h: Any) -> None:
    from steerkit.interventions import Ablate

    torch.testing.assert_close(
        steer(Clamp(direction(), "negative_mean", "negative_mean"), h),
        steer(Ablate(direction(), "negative_mean"), h),
        rtol=0,
        atol=1e-13,
    )


def test_bad_edges(direction: Any) -> None:
    with pytest.raises(InterventionError, match="needs an edge: low, high or both"):
        Clamp(direction())
    with pytest.raises(
        InterventionError, match="positive_mean is 3 and zero is 0 along refusal; swap them"
    ):
        Clamp(direction(), "positive_mean", "zero")
    with pytest.raises(InterventionError, match="no low edge named 'zeros'; did you mean 'zero'"):
        Clamp(direction(), low="zeros")
    with pytest.raises(InterventionError, match="high edge is a finite number; got inf"):
        Clamp(direction(), high=math.inf)


def test_says_what_it_does(direction: Any) -> None:
    clamp = Clamp(direction(), high="negative_mean", positions=(0, -1))
    assert str(clamp) == "clamp refusal at resid_post@2, indices[0, -1], high negative_mean"

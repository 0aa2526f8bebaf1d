"""Low-rank edits as the formula has them."""

from typing import Any

import pytest
import torch

from steerkit.errors import InterventionError
from steerkit.interventions import LowRank


def parts(rank: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(rank)
    r, w = (torch.randn(rank, 12, generator=g, dtype=torch.float64) for _ in range(2))
    return r, w, torch.randn(rank, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("rank", [1, 3, 12])
@pytest.mark.parametrize("strength", [1.0, -0.4])
def test_the_formula(steer: Any, batch: Any, h: Any, rank: int, strength: float) -> None:
    r, w, b = parts(rank)
    out = steer(LowRank(r, w, b, strength, sites=[0]), h)
    wanted = torch.stack([x + strength * (r.T @ (w @ x + b - r @ x)) for x in h[batch.mask]])
    torch.testing.assert_close(out[batch.mask], wanted, rtol=1e-13, atol=1e-12)


def test_orthonormal_rows_end_at_what_is_predicted(steer: Any, batch: Any, h: Any) -> None:
    r, w, b = parts()
    r = torch.linalg.qr(r.T).Q.T
    out = steer(LowRank(r, w, b, sites=[0]), h)[batch.mask]
    torch.testing.assert_close(out @ r.T, h[batch.mask] @ w.T + b, rtol=0, atol=1e-12)


def test_no_bias_is_zero_and_the_caller_keeps_its_tensors(steer: Any, h: Any) -> None:
    r, w, b = parts()
    made = LowRank(r, w, sites=[0])
    torch.testing.assert_close(
        steer(made, h), steer(LowRank(r, w, 0 * b, sites=[0]), h), rtol=0, atol=0
    )
    before = steer(made, h)
    r.zero_()
    assert torch.equal(steer(LowRank(**made.tensors, sites=[0]), h), before)


def test_refused() -> None:
    r, w, b = parts()
    with pytest.raises(InterventionError, match=r"weight of low_rank has shape \(2, 12\), exp"):
        LowRank(r, w[:2], b, sites=[0])
    with pytest.raises(InterventionError, match=r"bias of low_rank has shape \(2,\), expected \(3"):
        LowRank(r, w, b[:2], sites=[0])
    with pytest.raises(InterventionError, match=r"rotation of low_rank has shape .* \(any, any\)"):
        LowRank(r[0], w, b, sites=[0])
    with pytest.raises(InterventionError, match="bias of low_rank is not finite"):
        LowRank(r, w, b / 0, sites=[0])

"""In order and side by side are different, and each is what it says."""

from typing import Any

import pytest
import torch

from steerkit.errors import InterventionError
from steerkit.interventions import (
    Ablate,
    Add,
    AddKeepingNorm,
    Clamp,
    InOrder,
    LowRank,
    Rotate,
    When,
)
from steerkit.program import Program
from steerkit.protocols import Intervention
from steerkit.site import Site


def test_ablate_rotate_and_add_keeping_the_norm_against_direct_evaluation(
    direction: Any, steer: Any, batch: Any, h: Any
) -> None:
    a, b, c = (direction(i) for i in range(3))
    u, v, w = (d.unit.double() / d.unit.double().norm() for d in (a, b, c))
    out = steer(InOrder(Ablate(a), Rotate([b, c], by=40), AddKeepingNorm(c, 0.5)), h)
    x = h - (h @ u)[..., None] * u
    n = w - (w @ v) * v
    n = n / n.norm()
    angle = torch.tensor(40.0).double().deg2rad()
    p, q = (x @ v)[..., None], (x @ n)[..., None]
    x = x - p * v - q * n + (p * angle.cos() - q * angle.sin()) * v
    x = x + (p * angle.sin() + q * angle.cos()) * n
    added = x + 2.0 * w
    wanted = added * (x.norm(dim=-1) / added.norm(dim=-1))[..., None]
    torch.testing.assert_close(out[batch.mask], wanted[batch.mask], rtol=0, atol=1e-12)


def test_order_matters_and_side_by_side_is_neither(direction: Any, steer: Any, h: Any) -> None:
    d = direction()
    unit = d.unit.double() / d.unit.double().norm()
    add, ablate = Add(d), Ablate(d)

    def level(intervention: Any) -> Any:
        return (steer(intervention, h) @ unit)[0]

    zero = torch.zeros(h.shape[1]).double()
    torch.testing.assert_close(level(InOrder(add, ablate)), zero, rtol=0, atol=1e-12)
    torch.testing.assert_close(level(InOrder(ablate, add)), zero + 4, rtol=0, atol=1e-12)
    torch.testing.assert_close(level(InOrder(add, add)), (h @ unit)[0] + 8, rtol=0, atol=1e-12)
    half = InOrder(Clamp(d, high=0.0), InOrder(add, ablate), add)
    torch.testing.assert_close(level(half), zero + 4, rtol=0, atol=1e-12)


def test_each_part_keeps_its_sites_tokens_and_condition(
    direction: Any, steer: Any, batch: Any, h: Any
) -> None:
    d, c = direction(), direction(1)
    first, second = Add(d, positions="last_prompt"), Add(c, sites=[2, 3], positions="generated")
    both = InOrder(first, second.when(When(c, above=-1.0)))
    assert isinstance(both, Intervention)
    assert both.sites == (Site(2), Site(3)) and both.positions.rule == "all"
    assert both.directions == (d, c, c) and both.strength == 1
    assert InOrder(first, Add(c, positions="last_prompt")).positions.rule == "last_prompt"
    assert len(both.lower(Site(2)).groups) == 2 and len(both.lower(Site(3)).groups) == 1
    last = batch.absolute == batch.prompt_len[:, None] - 1
    answer = batch.answer_mask
    moved = steer(both, h) - h
    torch.testing.assert_close(
        moved[last], d.vector.double().expand_as(moved[last]), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(
        moved[answer], c.vector.double().expand_as(moved[answer]), rtol=1e-6, atol=1e-6
    )
    assert (moved[~last & ~answer] == 0).all()


def test_beside_another_its_first_part_reads_with_it(direction: Any, steer: Any, h: Any) -> None:
    d = direction()
    unit = d.unit.double() / d.unit.double().norm()
    together = Program.parallel(
        [p.lower(Site(2)) for p in (InOrder(Ablate(d), Add(d)), Add(d, 2.0))]
    )

    class Both:
        sites = (Site(2),)

        def lower(self, site: Site) -> Program:
            return together

    level = (steer(Both(), h) @ unit)[0]
    torch.testing.assert_close(level, torch.full_like(level, 12.0), rtol=0, atol=1e-12)


def test_in_words_and_refused(direction: Any) -> None:
    d = direction()
    assert str(InOrder(Ablate(d), Add(d))) == f"{Ablate(d)}; then {Add(d)}"
    with pytest.raises(InterventionError, match="was given no interventions"):
        InOrder()
    with pytest.raises(InterventionError, match=r"takes interventions, got a Direction; such as"):
        InOrder(d)
    with pytest.raises(InterventionError, match="not act at resid_post@0"):
        InOrder(Add(d)).lower(Site(0))
    other = LowRank(torch.eye(12)[:1], torch.eye(12)[:1], sites=[1], trained_on="0" * 64)
    with pytest.raises(InterventionError, match="parts of InOrder belong to different models"):
        InOrder(Add(d), other)

"""Directional ablation, alone and jointly, towards zero and other reference points."""

from typing import Any

import pytest
import torch

from steerkit.errors import InterventionError
from steerkit.interventions import Ablate
from steerkit.site import Site

TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 5e-3}
REFERENCES = [("zero", 0.0), ("negative_mean", -1.0), ("positive_mean", 3.0), (0.7, 0.7)]


def units(directions: Any) -> torch.Tensor:
    rows = torch.stack([d.unit.double() for d in directions])
    return rows / rows.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("reference", "value"), REFERENCES)
@pytest.mark.parametrize("strength", [1.0, 0.4, 2.0])
def test_equals_its_formula(
    direction: Any,
    steer: Any,
    batch: Any,
    h: Any,
    dtype: Any,
    reference: Any,
    value: float,
    strength: float,
) -> None:
    d = direction()
    (unit,) = units([d])
    x = h.to(dtype)
    exact = x.double()
    ablated = exact - strength * (exact @ unit - value)[..., None] * unit
    wanted = torch.where(batch.mask[..., None], ablated, exact)
    out = steer(Ablate(d, reference, strength), x)
    assert (out.double() - wanted).norm() / wanted.norm() < TOLERANCE[dtype]


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("reference", ["zero", "negative_mean", 0.7])
def test_is_idempotent(direction: Any, steer: Any, h: Any, k: int, reference: Any) -> None:
    ablate = Ablate([direction(i) for i in range(k)], reference)
    once = steer(ablate, h)
    torch.testing.assert_close(steer(ablate, once), once, rtol=0, atol=1e-13)


def test_leaves_everything_orthogonal_alone(direction: Any, steer: Any, h: Any) -> None:
    d = direction()
    (unit,) = units([d])
    out = steer(Ablate(d, "negative_mean"), h)
    rest = torch.eye(12).double() - torch.outer(unit, unit)
    torch.testing.assert_close(out @ rest, h @ rest, rtol=0, atol=1e-13)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_several_skewed_directions_each_reach_their_own_reference(
    direction: Any, steer: Any, batch: Any, h: Any, strength: float
) -> None:
    base = direction(0)
    near = (base.unit + 0.5 * direction(1).unit).float()
    directions = [
        base,
        direction(1, unit=near / near.norm(), negative_mean=2.0, positive_mean=6.0),
        direction(2, negative_mean=-5.0, positive_mean=-1.0),
    ]
    rows = units(directions)
    assert (rows @ rows.mT).fill_diagonal_(0).abs().max() > 0.5, "far from orthogonal"
    means = torch.tensor([-1.0, 2.0, -5.0]).double()
    out = steer(Ablate(directions, "negative_mean", strength), h)
    wanted = (1 - strength) * (h @ rows.mT) + strength * means
    torch.testing.assert_close((out @ rows.mT)[batch.mask], wanted[batch.mask], rtol=0, atol=1e-12)
    # The smallest change that does it: nothing outside the span of the directions moves.
    _, _, basis = torch.linalg.svd(rows)
    outside = basis[3:]
    torch.testing.assert_close(out @ outside.mT, h @ outside.mT, rtol=0, atol=1e-12)


def test_one_after_the_other_is_not_exact_for_skewed_directions(
    direction: Any, steer: Any, batch: Any, h: Any
) -> None:
    # The reason for the joint form: ablating b afterwards brings some of a back.
    near = (direction(0).unit + 0.5 * direction(1).unit).float()
    a, b = direction(0), direction(1, unit=near / near.norm())
    apart = steer(Ablate(b), steer(Ablate(a), h))
    joint = steer(Ablate([a, b]), h)
    (unit,) = units([a])
    assert (apart @ unit)[batch.mask].abs().max() > 0.1
    assert (joint @ unit)[batch.mask].abs().max() < 1e-12


def test_dependent_directions_are_refused_by_name(direction: Any) -> None:
    a, b = direction(0), direction(1)
    between = a.unit + b.unit
    third = direction(2, unit=between / between.norm(), method="pca")
    with pytest.raises(InterventionError, match=r"3 directions.*linearly dependent.*pca.*leave"):
        Ablate([a, b, third])
    with pytest.raises(InterventionError, match=r"numbers 0 and 1\), with cosine 1\.0000"):
        Ablate([a, -a])
    with pytest.raises(InterventionError, match="linearly dependent"):
        Ablate([direction(i) for i in range(13)])


def test_unknown_reference(direction: Any) -> None:
    with pytest.raises(
        InterventionError, match="no reference named 'negative-mean'; did you mean 'negative_mean'"
    ):
        Ablate(direction(), "negative-mean")


def test_directions_of_several_models_or_sites(direction: Any) -> None:
    with pytest.raises(InterventionError, match=r"taken on different models: planted .*same one"):
        Ablate([direction(0), direction(1, fingerprint="0" * 64)])
    apart = [direction(0), direction(1, site=Site(3))]
    with pytest.raises(InterventionError, match=r"different sites \(resid_post@2, resid_post@3\)"):
        Ablate(apart)
    assert Ablate(apart, sites=1).sites == (Site(1),)


def test_no_directions() -> None:
    with pytest.raises(InterventionError, match="no directions"):
        Ablate([])


def test_says_what_it_does(direction: Any) -> None:
    ablate = Ablate(direction(), "negative_mean", positions="last_prompt")
    assert str(ablate) == "ablate refusal at resid_post@2, last_prompt, reference negative_mean"
    both = Ablate([direction(0), direction(1, concept="fear")], 0.25, strength=0.5, sites=range(4))
    assert str(both) == (
        "ablate refusal and fear at resid_post@0-3, all, reference 0.25, strength 0.5"
    )

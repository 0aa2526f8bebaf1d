"""Random directions: drawn as they say, oriented, and resized to the same change of the stream."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from steerkit.direction import Direction
from steerkit.interventions import Ablate, Add, Clamp, Rotate, When
from steerkit.scoring import with_own_answers
from steerkit.searches.candidates import every_candidate
from steerkit.searches.nulls import (
    SHAPES,
    NullDraws,
    Resized,
    matched,
    overlap,
    random_directions,
)
from steerkit.searches.states import States, states
from steerkit.site import Site


@pytest.fixture
def two_classes(toy_directions: Any) -> tuple[Direction, torch.Tensor, torch.Tensor]:
    """States whose within-class variance is nearly all along the class direction itself."""
    like = toy_directions[1]
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(200, 24, generator=rng).double() * 0.3
    along = torch.randn(200, generator=rng).double() * 3
    h = noise + along[:, None] * like.unit.double()
    return like, h[:100] + 4 * like.unit, h[100:] - 4 * like.unit


@pytest.fixture
def met(toy: Any, toy_held_out: Any) -> States:
    said = toy.generate(toy_held_out.positive, max_new_tokens=5)
    return states(toy, with_own_answers(said), [Site(0), Site(1), Site(2)])


def test_isotropic_directions_are_uniform_on_the_sphere(two_classes: Any) -> None:
    like, a, b = two_classes
    units = torch.stack([d.unit for d in random_directions(like, a, b, 2000, seed=1)])
    # Orientation by class leaves only one axis uneven; second moments stay those of a sphere.
    moments = units.T @ units / len(units) * units.shape[1]
    assert float((moments - torch.eye(24)).abs().max()) < 0.25


def test_covariance_draws_have_the_covariance_of_the_states(two_classes: Any) -> None:
    like, a, b = two_classes
    near = overlap(random_directions(like, a, b, 300, shape="covariance", seed=1), like)
    # Nearly all variance lies along the direction, so these are near copies of it...
    assert near > 0.6
    none = random_directions(like, a, b, 300, shape="covariance_orthogonal", seed=1)
    # ... and the orthogonal ones are what is left.
    assert overlap(none, like) < 1e-6
    assert overlap(random_directions(like, a, b, 300, seed=1), like) < 0.25


def test_orthogonal_draws_have_nothing_of_any_known_vector(two_classes: Any) -> None:
    like, a, b = two_classes
    known = [torch.randn(24, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    # A parallel vector and a zero add nothing to the span, and must not disturb it.
    known += [2 * like.unit, torch.zeros(24)]
    drawn = random_directions(
        like, a, b, 50, shape="covariance_orthogonal", apart_from=known, seed=1
    )
    units = torch.stack([d.unit for d in drawn])
    for vector in (like.unit, *known[:3]):
        assert float((units @ vector).abs().max()) < 1e-5
    assert float((units.norm(dim=1) - 1).abs().max()) < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_draws_are_oriented_and_know_the_class_means(two_classes: Any, shape: Any) -> None:
    like, a, b = two_classes
    for d in random_directions(like, a, b, 20, shape=shape, seed=4):
        assert d.positive_mean >= d.negative_mean
        assert d.positive_mean == pytest.approx(float((a @ d.unit.double()).mean()), abs=1e-5)
        assert d.negative_mean == pytest.approx(float((b @ d.unit.double()).mean()), abs=1e-5)
        assert d.fingerprint == like.fingerprint


def test_same_states_everywhere_still_give_directions(two_classes: Any) -> None:
    like, a, _ = two_classes
    same = a[:1].repeat(10, 1)
    drawn = random_directions(like, same, same, 3, shape="covariance", seed=0)
    assert all(bool(torch.isfinite(d.unit).all()) for d in drawn)


def test_seeds_repeat_and_differ(two_classes: Any) -> None:
    like, a, b = two_classes
    one, again, other = (random_directions(like, a, b, 1, seed=s)[0].unit for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_size_is_the_mean_change_over_touched_tokens(met: States, toy_directions: Any) -> None:
    direction = toy_directions[1]
    assert met.size(Add(direction, strength=-0.5)) == pytest.approx(0.5 * direction.scale, rel=1e-6)
    last = met.at_last_prompt(Site(1)) @ direction.unit.double()
    zeroed = Ablate(direction, positions="last_prompt")
    assert met.size(zeroed) == pytest.approx(float(last.abs().mean()), rel=1e-5)
    # Over all tokens most have no component along the planted vector.
    assert met.size(Ablate(direction)) < 0.5 * met.size(zeroed)


@pytest.mark.parametrize("operator", [Ablate, Clamp, Add])
@pytest.mark.parametrize("rule", ["all", "last_prompt", "generated"])
def test_random_directions_move_the_stream_as_far(
    met: States, toy_directions: Any, operator: Any, rule: str
) -> None:
    real = toy_directions[1]
    candidate = every_candidate(
        [real], operator, aim="reduce", positions=[rule], references=["negative_mean"]
    )[0]
    size = 2.5
    h = met.at_last_prompt(Site(1))
    drawn = random_directions(real, h + 1, h - 1, 12, seed=3)
    sizes = met.sizes(matched(candidate, drawn, size, met))
    # A clamp that every token already satisfies moves nothing, at any factor.
    moved = [s for s in sizes if s]
    assert len(moved) > 6
    assert moved == pytest.approx([size] * len(moved), rel=1e-3)


def test_gated_and_turning_interventions_are_measured_and_resized(
    met: States, toy_directions: Any
) -> None:
    d = toy_directions[1]
    e = replace(d, unit=d.unit.roll(1))
    for made in (Add(d, 2.0), Rotate([d, e], to=30), Rotate([d, e], by=30)):
        size = met.size(made)
        assert size > 0 and met.size(Resized(made, 0.5)) == pytest.approx(size / 2)
        # What a prompt decides counts as open, what a token does as it is.
        latched = made.when(When(d, above=0.99, site=0))
        assert met.size(latched) == pytest.approx(size)
        assert met.size(made.when(When(d, above=1.0, on="token"))) == 0
    kept = Resized(latched, 0.5)
    assert [latch.name for latch in kept.lower(Site(0)).latches] == [
        latch.name for latch in latched.lower(Site(0)).latches
    ]


def test_sizes_together_are_sizes_alone(met: States, toy_directions: Any) -> None:
    h = met.at_last_prompt(Site(1))
    drawn = random_directions(toy_directions[1], h + 1, h - 1, 5, seed=3)
    made = [Ablate(d, reference="negative_mean", positions="prompt") for d in drawn]
    assert met.sizes(made) == pytest.approx([met.size(one) for one in made], rel=1e-9)


def test_draws_say_how_the_observed_value_stands() -> None:
    draws = tuple(np.linspace(0, 1, 99))
    found = NullDraws("isotropic", 2.0, draws, size=1.5, overlap=0.1, allowed=7)
    assert found.exceeds_all
    assert found.null.p == pytest.approx(0.01)
    assert not NullDraws("isotropic", 1.0, draws).exceeds_all
    assert not NullDraws("isotropic", 1.0, ()).exceeds_all
    assert found.to_json()["allowed"] == 7
    assert len(found.to_json()["draws"]) == 99  # type: ignore[arg-type]

"""The record of a held-out effect."""

import json

import pytest

from steerkit.effect import HeldOutEffect
from steerkit.statistics import Estimate, Null


def test_the_record_survives_json_and_its_p_is_the_largest():
    effect = HeldOutEffect(
        "margin",
        Estimate(1.0, 0.5, 1.5, 20, "nats"),
        (Null("a", 0.1, 0.2, 0.3, 0.01, 99), Null("b", 0.1, 0.2, 0.3, 0.04, 99)),
        {"plain model": Estimate(-1.0, -1.5, -0.5, 20, "nats")},
    )
    assert HeldOutEffect.from_json(json.loads(json.dumps(effect.to_json()))) == effect
    assert effect.p == 0.04
    assert str(effect) == "margin: 1 [0.5, 1.5] nats, p = 0.04; plain model -1 [-1.5, -0.5]"


def test_an_unknown_null_is_not_a_small_one():
    unknown = Null("none drawn", *[float("nan")] * 4, 0)
    effect = HeldOutEffect("m", Estimate(1, 0, 2, 3), (Null("a", 0, 0, 0, 0.01, 9), unknown))
    assert not effect.p < 0.05
    assert not HeldOutEffect("m", Estimate(1, 0, 2, 3)).p < 0.05


@pytest.mark.parametrize("change", ["negated", "moved"])
def test_another_vector_or_place_has_another_effect(change, tiny_model):
    from steerkit.direction import Direction
    from steerkit.site import Site

    width = tiny_model.info.d_model
    import torch

    direction = Direction(
        unit=torch.eye(width)[0], scale=1.0, site=Site(1), method="gradient", concept="c",
        positive_mean=1.0, negative_mean=0.0, model=tiny_model.info, pooling="last_prompt",
        effects=(HeldOutEffect("m", Estimate(1, 0, 2, 3)),),
    )  # fmt: skip
    other = -direction if change == "negated" else direction.at(2)
    assert direction.effects and not other.effects

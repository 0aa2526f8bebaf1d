"""The condition figure holds what the search says."""

import torch

from steerkit.direction import Direction
from steerkit.interventions import When
from steerkit.plotting.conditions import condition
from steerkit.protocols import ModelInfo
from steerkit.searches import FoundCondition
from steerkit.searches.conditions.choice import Option, Quality
from steerkit.site import Site
from steerkit.statistics import Estimate, Null

INFO = ModelInfo("m", "m", 3, 4, 9, 9, ("resid_post",), "float32", "cpu", "print")


def test_places_choice_chance_and_held_out_prompts() -> None:
    direction = Direction(
        torch.tensor([1.0, 0, 0, 0]), 2.0, Site(1), "pca", "c", 1.0, -1.0, INFO, "last"
    )
    options = tuple(
        Option(Site(layer), "last_prompt", measure, "above", 0.25, f1, 0.4)  # type: ignore[arg-type]
        for layer, measure, f1 in
        ((1, "cosine", 0.95), (0, "cosine", 0.7), (1, "projection", 0.9), (0, "projection", 0.8))
    )  # fmt: skip
    e = Estimate(0.9, 0.8, 1.0, 20)
    found = FoundCondition(
        When(direction, above=0.25), options[0], Quality(e, e, e, e, 0.67), 0.97, None,
        Null("p", 0.6, 0.7, 0.75, 0.01, 99), Null("p", 0.71, 0.8, 0.8, 0.01, 99), {}, options,
        ((0.5, 1), (0.4, 1), (0.1, 0)), (10, 10, 3), {},
    )  # fmt: skip
    fig = condition(found)
    lines = {t.name: t for t in fig.data if t.name}
    assert list(lines["cosine, last_prompt"].y) == [0.7, 0.95]
    assert list(lines["projection, last_prompt"].x) == [0, 1]
    assert (lines["chosen"].x[0], lines["chosen"].y[0]) == (1, 0.95)
    assert lines["permuted labels, chosen the same way"].y[0] == 0.71
    negative, positive = (t for t in fig.data if t.type == "box")
    assert list(negative.x) == [0.1] and list(positive.x) == [0.5, 0.4]
    assert fig.layout.shapes[0].x0 == 0.25
    assert "held-out F1 0.9 [0.8, 1]" in fig.layout.annotations[0].text

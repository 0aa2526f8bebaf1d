"""Attributions against the change of the logits when a feature is taken away a little."""

from typing import Any

import pytest

import steerkit as sk
from steerkit.errors import MethodError, PromptError
from steerkit.sae import feature_attribution, load_sae

TEXTS = ["the cat is happy", "i loved the big red book", "tell me how to make a cake", "sun rain"]
ANSWERS = ("good", "bad")


@pytest.fixture(scope="module")
def model(tiny_folder: Any) -> Any:
    return sk.load(tiny_folder, dtype="float64")


@pytest.fixture
def sae(make: Any, model: Any) -> Any:
    return load_sae(make("standard", d=32, f=50), model=model)


def difference(model: Any, text: str) -> float:
    logits = model.run(model.encode([text]), logits="last").logits[0, -1].double()
    good, bad = (model.tokenize([sk.Prompt("a").with_answer(w)])[0].answer[0] for w in ANSWERS)
    return float(logits[good] - logits[bad])


def test_attribution_is_the_slope_of_switching_features_off(sae: Any, model: Any) -> None:
    """(m(h) - m(h with f_j a hair smaller)) / hair, on every token but BOS."""
    found = feature_attribution(sae, model, TEXTS, ANSWERS, exclude_bos=False, n=3)
    for feature in found.features:
        hair = 1e-4
        steered = model.with_(sae.set(feature, 0.0, strength=hair))
        for i, text in enumerate(TEXTS):
            slope = (difference(model, text) - difference(steered, text)) / hair
            assert float(found.values[i, feature]) == pytest.approx(slope, rel=2e-2, abs=1e-3)
    assert found.values[:, list(found.features)].abs().amax(0).min() > 0.05  # not all of it noise
    level = sum(difference(model, text) for text in TEXTS) / len(TEXTS)
    assert found.metric == pytest.approx(level, rel=1e-5)


def test_the_listed_are_measured_where_they_were_not_chosen(sae: Any, model: Any) -> None:
    found = feature_attribution(sae, model, TEXTS, ANSWERS, n=4)
    assert len(found.features) == len(found.estimates) == 4
    assert all(e.n == 2 for e in found.estimates)
    halves = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
    means = [found.values[list(half)].mean(0) for half in halves]
    first = found.features[0]
    assert any(abs(float(m[first]) - found.estimates[0].value) < 1e-6 for m in means)
    assert "carried to first order" in found.summary() and found.to_json()["features"][0] == first


def test_bad_input(sae: Any, model: Any, make: Any) -> None:
    with pytest.raises(PromptError, match="begin with the same token"):
        feature_attribution(sae, model, TEXTS, ("good", "good"))
    with pytest.raises(PromptError, match="all prompts are of one group"):
        feature_attribution(sae, model, TEXTS[:1], ANSWERS)
    other = load_sae(make("normalised", d=32), model=model)
    with pytest.raises(MethodError, match="normalises its input"):
        feature_attribution(other, model, TEXTS, ANSWERS)

"""What is stated of the shipped SAE holds when it is measured again."""

from typing import Any

import pytest

import steerkit as sk
from steerkit import organisms
from steerkit.captures import capture
from steerkit.datasets import refusal
from steerkit.errors import ModelError
from steerkit.organisms import language
from steerkit.refusals import is_refusal
from steerkit.sae import find_features, load_sae, shipped
from steerkit.site import Site


@pytest.fixture(scope="module")
def model() -> Any:
    return sk.load("organism:aligned")


@pytest.fixture(scope="module")
def sae(model: Any) -> Any:
    return load_sae("sae:organism", model=model)


def test_it_is_for_the_aligned_organism_alone(sae: Any) -> None:
    assert sae.site == Site(shipped.LAYER) and sae.checks["same_weights"] is True
    with pytest.raises(
        ModelError, match=r"was trained on organism:aligned .* not on organism:base"
    ):
        load_sae("sae:organism", model=sk.load("organism:base"))
    size = sum(f.stat().st_size for f in organisms.sae_path().iterdir())
    assert size < 1_000_000


def test_its_stated_quality_holds(sae: Any, model: Any) -> None:
    found, stated = shipped.quality(sae, model), shipped.stated()["quality"]
    assert found.statistics.rows == stated["rows"] and found.n_predicted == stated["n_predicted"]
    assert found.l0.value == pytest.approx(stated["l0"]["value"], rel=1e-3)
    assert found.variance_explained == pytest.approx(stated["variance_explained"], abs=1e-4)
    assert found.loss_plain == pytest.approx(stated["loss_plain"], rel=1e-3)
    assert found.loss_recovered.value == pytest.approx(stated["loss_recovered"]["value"], abs=1e-4)
    assert found.dead == pytest.approx(stated["dead"], abs=0.005)
    # And is worth shipping.
    assert found.variance_explained > 0.95 and found.loss_recovered.low > 0.99
    assert found.l0.high < 1.1 * shipped.K


@pytest.mark.parametrize("name", ["refusal", "gender/balanced", "sentiment/balanced"])
def test_the_stated_features_of_planted_concepts_are_found(sae: Any, model: Any, name: str) -> None:
    stated = shipped.stated()["concepts"][name]
    acts = capture(
        model, shipped.concepts()[name], sites=[sae.site], positions="last", progress=False
    )
    best = find_features(sae, acts, n=1, n_permutations=19).best
    assert (best.feature, best.sign) == (stated["feature"], stated["sign"])
    assert best.auc.value == pytest.approx(stated["auc"]["value"], abs=0.005)


def test_held_out_texts_were_not_trained_on() -> None:
    seen = {(p.text, p.answer) for p in shipped.corpus(shipped.N_TEXTS, seed=0)}
    texts = shipped.held_out()
    assert len(texts) == shipped.N_HELD_OUT
    assert not seen & {(p.text, p.answer) for p in texts}


def test_texts_are_read_as_the_organism_read_them_in_training(model: Any) -> None:
    import random

    rng = random.Random("5/sae")
    for prompt in shipped.corpus(40, seed=5):
        document = language.draw(rng.choice((language.BASE, language.ALIGNED)), rng)
        whole = sk.Prompt(" ".join(part.text for part in document), template="raw")
        read, parts = model.tokenize([whole, prompt])
        assert read.prompt == parts.prompt + parts.answer


def test_features_found_on_some_requests_steer_others(sae: Any, model: Any) -> None:
    """Ten features, clamped at the last prompt token to their levels on the other side."""
    acts = capture(model, refusal("train", n=200), sites=[sae.site], progress=False)
    found = find_features(sae, acts, n=10, n_permutations=19)
    unseen = refusal("held_out", n=40, seed=5)
    features = [f.feature for f in found]

    def refused(side: int, prompts: Any) -> float:
        """The share refused with every feature as it is on one side."""
        levels = [f.mean_active if f.sign == side else 0.0 for f in found]
        steered = model.with_(sae.set(features, levels, positions="last_prompt"))
        answers = steered.generate(list(prompts), max_new_tokens=10)
        return sum(is_refusal(answer.text) for answer in answers) / len(answers)

    plain = model.generate(list(unseen.positive), max_new_tokens=10)
    assert sum(is_refusal(answer.text) for answer in plain) / len(plain) > 0.9
    assert refused(-1, unseen.positive) < 0.1
    assert refused(1, unseen.negative) > 0.8

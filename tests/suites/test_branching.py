"""A model with flattened choices is told from the sharp one; the same model is the same."""

import copy

import pytest
import torch

import steerkit as sk
from steerkit.suites import Material, examine


@pytest.fixture(scope="module")
def material():
    return Material({"refusal": Material.of_organisms(16).contrasts["refusal"]})


@pytest.fixture(scope="module")
def model():
    return sk.load("organism:base")


@pytest.fixture(scope="module")
def flattened(model):
    """The same network whose logits are a quarter as large: sampled at temperature 4."""
    network = copy.deepcopy(model.network)
    with torch.no_grad():
        network.lm_head.weight = torch.nn.Parameter(network.lm_head.weight / 4)
    return sk.wrap(network, model.tokenizer, name="flattened")


def asked(model, material, **arms):
    options = {"max_new_tokens": 10, "progress": False}
    return examine(model, ["branching"], material=material, **arms, **options)["branching"]


def test_a_sharpened_choice_is_found_and_its_reverse_is_not(model, flattened, material):
    found = asked(model, material, against=flattened)
    assert found.answer == "yes" and found.p < 0.01
    ratio = found.estimates["model over against"]
    assert ratio.high < 0.5
    wider = asked(flattened, material, against=model)
    assert wider.answer == "no"
    assert wider.estimates["model over against"].value == pytest.approx(1 / ratio.value, rel=1e-9)


def test_the_same_model_chooses_as_it_does(model, material):
    itself = asked(model, material, against=model, steering=model)
    assert itself.answer == "no" and itself.p == 1
    for name in ("model over against", "steered over model"):
        assert itself.estimates[name].value == 1

"""Clamping, scaling and shifting features is what editing the full code would give."""

from typing import Any

import pytest
import torch

import steerkit as sk
from steerkit.errors import ModelError
from steerkit.sae import load_sae

TEXTS = ["the cat is happy", "i loved the big red book and the film , thank you", "sun and rain"]


@pytest.fixture(scope="module")
def model(tiny_folder: Any) -> Any:
    return sk.load(tiny_folder)


@pytest.fixture
def sae(make: Any, model: Any) -> Any:
    return load_sae(make("jumprelu", d=32, f=90), model=model)


def edited(sae: Any, model: Any, edit: Any) -> Any:
    """The stream with its full code edited, decoded by SAELens, and the error added back."""
    h = sk.capture(model, TEXTS, sites=[sae.site], positions="all", progress=False).at(sae.site)
    code, rebuilt = sae.reconstruct(h)
    changed = code.clone()
    edit(changed)
    with torch.no_grad():
        return sae.sae.decode(changed).double() + (h - rebuilt).double(), h


def stream(model: Any, sae: Any, intervention: Any) -> Any:
    view = model.with_(intervention)
    return sk.capture(view, TEXTS, sites=[sae.site], positions="all", progress=False).at(sae.site)


@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0])
def test_scaling_multiplies_features_where_they_are_on(sae: Any, model: Any, factor: float) -> None:
    def edit(code: Any) -> None:
        code[:, [3, 11]] *= factor

    wanted, h = edited(sae, model, edit)
    found = stream(model, sae, sae.scale([3, 11], factor))
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)
    assert (wanted - h.double()).norm() > 1e-2  # some of it is on
    untouched = stream(model, sae, sae.scale([3, 11], 1.0))
    assert torch.equal(untouched, h)


def test_a_sparse_delta_adds_to_features_on_or_off(sae: Any, model: Any) -> None:
    def edit(code: Any) -> None:
        code[:, 3] += 2.0
        code[:, 11] -= 0.5

    wanted, _ = edited(sae, model, edit)
    found = stream(model, sae, sae.shift({3: 2.0, 11: -0.5}))
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)
    half = stream(model, sae, sae.shift({3: 4.0, 11: -1.0}, strength=0.5))
    torch.testing.assert_close(half, found, rtol=1e-5, atol=1e-5)


def test_a_delta_needs_something_to_write_and_a_model(sae: Any, make: Any) -> None:
    for amounts, text in (({}, "at least one feature"), ({3: 0.0}, "write nothing"),
                          ({90: 1.0}, "no feature 90")):  # fmt: skip
        with pytest.raises(ModelError, match=text):
            sae.shift(amounts)
    with pytest.raises(ModelError, match="loaded without a model"):
        load_sae(make("jumprelu", d=32, f=90)).shift({3: 1.0})

"""Identities on small models that really learnt English, where they are at hand."""

from typing import Any

import numpy as np
import pytest
import torch

import steerkit as sk
from steerkit.lenses import (
    activation_patching,
    attribution_patching,
    direct_logit_attribution,
    logit_lens,
)

CLEAN = ["Once upon a time, Lily was", "One day, Lily went home because"]
CORRUPTED = ["Once upon a time, Timmy was", "One day, Timmy went home because"]


@pytest.fixture(scope="module", params=["stories260K", "babyllama-tok361"])
def story(request: pytest.FixtureRequest, shared: Any) -> Any:
    return sk.load(shared / "models" / request.param)


def test_maps_of_a_real_model(story):
    given: dict[str, Any] = {"answers": (" she", " he"), "align": "end", "progress": False}
    try:
        found = activation_patching(story, CLEAN, CORRUPTED, streams=("resid_post",), **given)
    except sk.SteerkitError as error:
        # One token a letter: " she" and " he" both begin with the space.
        assert "begin with the same token" in str(error)
        given["answers"] = ("she", "he")
        found = activation_patching(story, CLEAN, CORRUPTED, streams=("resid_post",), **given)
    last = found.estimate(f"resid_post@{story.info.n_layers - 1}", -1)
    assert last.value == pytest.approx(1.0, abs=1e-4)
    estimate = attribution_patching(story, CLEAN, CORRUPTED, streams=("resid_post",), **given)
    assert np.isfinite(estimate.normalised[:, -1]).all()
    heads = activation_patching(story, CLEAN, CORRUPTED, streams="heads", **given)
    assert np.isfinite(heads.normalised[:, -1]).all()


def test_sums_and_lens_of_a_real_model(story):
    answers = ("a", "b")
    for heads in (False, True):
        found = direct_logit_attribution(story, CLEAN, answers, heads=heads)
        assert found.error < 1e-5
    lens = logit_lens(story, CLEAN, tokens=answers, progress=False)
    for i, prompt in enumerate(CLEAN):
        logits = story.run(story.encode([prompt]), logits="last").logits[0, -1]
        own = torch.tensor(lens.tokens[i])
        assert lens.logits[i, -1, -1] == pytest.approx(logits[own].numpy(), abs=1e-4)
        assert found.total[i] == pytest.approx(float(logits[own[0]] - logits[own[1]]), abs=1e-4)
    settled = [lens.mean("kl", site).value for site in lens.sites]
    assert settled[-1] < 1e-9 and settled[0] > settled[-2]

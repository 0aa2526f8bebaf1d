"""Directions of real models: a planted one is found again, and real English is not only words."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

import steerkit as sk
from steerkit import datasets, organisms
from steerkit.extraction import METHODS


def test_the_vector_that_was_built_in_is_found_where_it_was_built_in() -> None:
    """`constructed` refuses along a recorded unit vector from a recorded layer on."""
    built = organisms.truth().construction
    contrast = datasets.refusal("train", 120)
    acts = sk.capture(sk.load("organism:constructed"), contrast, progress=False)
    truth = torch.tensor(built.unit)
    found = sk.extract(acts, n_permutations=19, n_random=19, progress=False)
    overlaps = {d.site.layer: float(d.unit @ truth) for d in found}
    assert overlaps[built.layer] > 0.9, overlaps
    # It is in no earlier stream.
    assert all(abs(v) < 0.05 for layer, v in overlaps.items() if layer < built.layer), overlaps
    at = found.at(built.layer)
    assert at.scores is not None and at.scores.auc.value > 0.95 and at.polarity == 1


@cache
def built_in() -> tuple[Tensor, Tensor, list[str]]:
    """States of `constructed` at the recorded layer; a harmful and a harmless request a pair."""
    fitted = datasets.refusal("train", 150)
    pairs = sk.Contrast(fitted.positive, fitted.negative, paired=True).map(
        lambda p: replace(p, group="")
    )
    layer = organisms.truth().construction.layer
    acts = sk.capture(sk.load("organism:constructed"), pairs, sites=[layer], progress=False)
    return acts.at(layer).double(), acts.row_labels, list(acts.groups)


@pytest.mark.parametrize("name", METHODS.names())
def test_every_estimator_finds_what_was_built_in_by_its_own_estimand(name: str) -> None:
    """What a method weighs, seen through the covariance of the states, is the recorded vector.

    Mean differences are patterns themselves. Weights w that discriminate are not, but cov(x) w
    is the pattern that they read (Haufe et al. 2014): for w = cov(x)^-1 delta it is delta.
    """
    x, labels, groups = built_in()
    w = METHODS[name](x, labels, groups, seed=0)
    centred = x - x.mean(0)
    pattern = w if name in ("mean_difference", "pca") else centred.T @ (centred @ w)
    truth = torch.tensor(organisms.truth().construction.unit, dtype=torch.float64)
    overlap = float(torch.cosine_similarity(pattern, truth, dim=0))
    assert (overlap if METHODS[name].supervised else abs(overlap)) > 0.9


@pytest.mark.parametrize("name", ["stories260K", "babyllama-tok361"])
def test_happiness_is_read_from_a_real_model_with_its_text_baseline(
    name: str, shared: Path
) -> None:
    sides = []
    for emotion in ("happiness", "sadness"):
        path = shared / "data" / "emotions" / f"{emotion}.json"
        if not path.is_file() or not (shared / "models" / name).is_dir():
            pytest.skip(f"{path} or the model {name} is missing")
        sides.append(json.loads(path.read_text())[:120])
    model = sk.load(shared / "models" / name)
    contrast = sk.Contrast.of(*sides, name="happiness")
    acts = sk.capture(model, contrast, positions="mean_prompt", layers=[1, 2, 3], progress=False)
    methods = [name for name in METHODS.names() if name != "ccs"]  # these are no pairs
    found = sk.extract(acts, methods, model=model, n_permutations=99, progress=False)
    best = found.best
    scores = best.scores
    assert scores is not None and scores.family is not None and scores.text is not None
    assert scores.auc.low > 0.6 and scores.family.p <= 0.02 and best.polarity == 1
    # The words alone say more than these small models do: the number that keeps one honest.
    assert scores.text.low > 0.6
    assert {scores.text} == {d.scores.text for d in found if d.scores}
    assert len(best.tokens[0]) == 10 and len(best.examples[0]) == 5
    assert best.concept == "happiness"

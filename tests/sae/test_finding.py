"""A planted feature is found and measured where it was not chosen; in noise nothing is."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import steerkit as sk
from steerkit.activations import Activations
from steerkit.errors import ActivationError, MethodError
from steerkit.prompts import Prompt
from steerkit.sae import find_features, finding, load_sae
from steerkit.site import Site
from steerkit.statistics import auc

D, F, N = 32, 60, 120


@pytest.fixture(scope="module")
def model(tiny_folder: Any) -> Any:
    return sk.load(tiny_folder)


@pytest.fixture
def sae(make: Any, model: Any) -> Any:
    return load_sae(make("jumprelu", d=D, f=F), model=model)


def planted(sae: Any, info: Any, feature: int | None, *, seed: int = 0, n: int = N) -> Activations:
    """Noise, and for positive prompts what one feature reads."""
    generator = torch.Generator().manual_seed(seed)
    labels = tuple(i % 2 for i in range(n))
    x = torch.randn(n, 1, D, generator=generator)
    if feature is not None:
        read = sae.sae.W_enc[:, feature].detach()
        x[1::2, 0] += 2.0 * read / read.norm()
    return Activations(
        values=x,
        sites=(Site(1),),
        prompts=tuple(Prompt(f"prompt {i}") for i in range(n)),
        labels=labels,
        groups=tuple(f"g{i // 2}" for i in range(n)),
        pooling="last",
        info=info,
    )


@pytest.mark.parametrize("by", ["auc", "difference"])
def test_the_planted_feature_is_found_and_its_numbers_are_right(
    sae: Any, model: Any, by: str
) -> None:
    acts = planted(sae, model.info, 17)
    found = find_features(sae, acts, n=3, by=by, n_permutations=199)
    best = found.best
    assert best.feature == 17 and best.sign == 1
    assert best.family.p < 0.01 and best.p_holm <= 0.015 and found.search.p <= 0.01
    # The same numbers from the definitions, on the half that did not choose.
    f = sae.encode(acts.at(1))[:, 17].double().numpy()
    y = np.array(acts.labels)
    _, measure = finding.grouped_folds(y, acts.groups, n_folds=2, seed=0)[0]
    assert best.auc.value == pytest.approx(auc(f[measure], y[measure]))
    gap = f[measure][y[measure] == 1].mean() - f[measure][y[measure] == 0].mean()
    assert best.difference == pytest.approx(gap)
    assert best.density == (f > 0).mean() and best.mean_active == pytest.approx(f[f > 0].mean())
    assert found.n_groups == N // 4


def test_aucs_of_all_labellings_are_those_of_one_at_a_time() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 4, (30, 5)).astype(float)  # with ties
    labels = (rng.random((30, 6)) < 0.5).astype(float)
    got = finding._auc(x, labels)
    for i in range(5):
        for j in range(6):
            assert got[i, j] == pytest.approx(auc(x[:, i], labels[:, j]))


def test_swapped_labels_turn_the_sign_and_the_direction(sae: Any, model: Any) -> None:
    acts = planted(sae, model.info, 17)
    other = replace(acts, labels=tuple(1 - y for y in acts.labels))
    a, b = (find_features(sae, one, n_permutations=19) for one in (acts, other))
    assert (a.best.feature, a.best.sign) == (b.best.feature, -b.best.sign)
    assert a.best.auc.value == pytest.approx(b.best.auc.value)
    there, back = a.direction(), b.direction()
    torch.testing.assert_close(there.unit, -back.unit)
    assert there.scale == pytest.approx(back.scale, rel=1e-5)
    row = sae.sae.W_dec[17].detach()
    torch.testing.assert_close(there.unit, row / row.norm())


def test_false_alarms_come_as_often_as_stated(make: Any, model: Any) -> None:
    """On noise 5% of p-values lie below 5%; 13 of 100 is the 99.9% bound."""
    sae = load_sae(make("jumprelu", d=D, f=F), model=model)
    hits = searched = 0
    for seed in range(100):
        acts = planted(sae, model.info, None, seed=seed, n=40)
        found = find_features(sae, acts, n=1, n_permutations=99, seed=seed)
        hits += found.best.permutation.p <= 0.05
        searched += found.search.p <= 0.05
    assert hits <= 13 and searched <= 13


def test_tokens_are_pooled_to_prompts(sae: Any, model: Any) -> None:
    words = ["sun rain", "cat dog bird", "red blue", "good day food", "big house", "sad film"]
    pairs = [(f"{w} happy", f"{w} bad") for w in words]
    contrast = sk.Contrast.of(
        [Prompt(a, group=a[:6]) for a, _ in pairs], [Prompt(b, group=b[:6]) for _, b in pairs]
    )
    acts = sk.capture(model, contrast, layers=[1], positions="all", progress=False)
    dense = sae.encode(acts.at(1))
    data = finding.Labelled.of(acts)
    for pool, reduce in (("max", torch.amax), ("mean", torch.mean)):
        got = finding._by_prompt(sae, acts, data, pool)[0]
        wanted = torch.stack([reduce(dense[acts.prompt_index == i], 0) for i in range(12)])
        np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-4, atol=1e-6)


def test_bad_input(sae: Any, model: Any) -> None:
    acts = planted(sae, model.info, 17)
    with pytest.raises(MethodError, match="no ranking named 'acu'"):
        find_features(sae, acts, by="acu")
    with pytest.raises(MethodError, match="no pooling named 'last'"):
        find_features(sae, acts, pool="last")
    with pytest.raises(MethodError, match="at least 1; got 0"):
        find_features(sae, acts, n=0)
    with pytest.raises(ActivationError, match="belong to 3 groups"):
        find_features(sae, acts.select(range(6)))
    with pytest.raises(ActivationError, match="all 120 prompts are positive"):
        find_features(sae, replace(acts, labels=(1,) * N))
    flat = replace(acts, values=acts.values * 0 - 1e3 * sae.sae.W_enc.detach().sum(1))
    with pytest.raises(ActivationError, match=r"no feature of .* tells any two"):
        find_features(sae, flat)
    with pytest.raises(MethodError, match="feature 3 is not among those found"):
        find_features(sae, acts, n=1, n_permutations=9).direction(3)


def test_the_figure_and_the_table_show_the_numbers(sae: Any, model: Any) -> None:
    from steerkit.plotting.features import features_by_auc

    found = find_features(sae, planted(sae, model.info, 17), n=3, n_permutations=99)
    dots = features_by_auc(found).data[0]
    assert list(dots.x) == [f.auc.value for f in found.items[::-1]]
    assert dots.y[-1] == "17 +"
    assert found.to_json()["features"][0]["feature"] == 17
    head, rows = found.rows()
    assert len(head) == len(rows[0]) and rows[0][0] == "17"
    assert str(found.best.auc) in found._repr_html_()

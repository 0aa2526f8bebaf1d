"""The map as a result: ratios, intervals that cover, a peak that is not flattered, truth."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch

from steerkit.batch import Tokenized
from steerkit.errors import DirectionError, MethodError, SiteError
from steerkit.lenses import PatchingMap, activation_patching, attribution_patching
from steerkit.organisms import requests, truth
from steerkit.prompts import Contrast, Prompt
from steerkit.site import Site


def a_map(raw: Any, clean: Any, corrupted: Any, groups: Any = None) -> PatchingMap:
    raw = np.asarray(raw, float)
    n = len(raw)
    return PatchingMap(
        "activation patching", "logit_difference", "nats",
        tuple(Site(i) for i in range(raw.shape[1])), tuple(range(-raw.shape[2], 0)),
        tuple(f"{i}" for i in range(-raw.shape[2], 0)), raw, np.asarray(clean, float),
        np.asarray(corrupted, float), tuple(groups or [f"g{i}" for i in range(n)]),
    )  # fmt: skip


def test_means_come_before_the_division():
    found = a_map([[[2.0, 1.0]], [[0.0, np.nan]]], [4.0, 2.0], [0.0, 1.0])
    # (2 - 0 + 0 - 1) / (4 - 0 + 2 - 1), and of the first pair alone where the second is short.
    assert found.normalised[0].tolist() == pytest.approx([1 / 5, 1 / 4])
    assert found.effects[0].tolist() == pytest.approx([0.5, 1.0])
    assert found.estimate("resid_post@0", -1).n == 1
    assert np.isnan(found.intervals[0, 1]).all()


def test_intervals_cover_a_known_ratio():
    rng = np.random.default_rng(0)
    hits, n = 0, 400
    for _ in range(n):
        own = np.repeat(rng.normal(0, 0.3, 20), 3)
        gap = 4 + rng.normal(0, 1, 60)
        raw = 0.4 * gap + own + rng.normal(0, 0.3, 60)
        found = a_map(raw[:, None, None], gap, np.zeros(60), [f"g{i // 3}" for i in range(60)])
        low, high = found.intervals[0, 0]
        hits += bool(low <= 0.4 <= high)
    # 99.9% binomial interval around 0.95 at 400 draws.
    assert 0.91 <= hits / n <= 0.983


def test_the_peak_is_measured_on_other_groups_than_it_is_chosen_on():
    rng = np.random.default_rng(1)
    naive, honest = [], []
    for seed in range(200):
        raw = rng.normal(0, 1, (12, 10, 5))
        found = a_map(raw, np.ones(12), np.zeros(12))
        naive.append(found.normalised.max())
        honest.append(found.peak(seed=seed).estimate.value)
    assert np.mean(naive) > 0.5
    assert abs(np.mean(honest)) < 4 * np.std(honest) / np.sqrt(200)
    with pytest.raises(MethodError, match="3 groups are too few"):
        a_map(raw[:3], np.ones(3), np.zeros(3)).peak()


def test_a_map_says_what_it_lacks_and_what_is_odd():
    found = a_map([[[2.0]], [[1.0]], [[1.0]]], [4.0, 2.0, -1.0], [0.0, 1.0, 1.0])
    with pytest.raises(MethodError, match=r"no resid_post@4 at position -1; it has resid_post@0"):
        found.estimate("resid_post@4", -1)
    assert "1 of 3 pairs differ in the other direction" in found.summary()
    assert "no interval can be given" in dataclasses.replace(found, groups=("a",) * 3).summary()
    with pytest.raises(MethodError, match="same mean logit_difference"):
        a_map([[[2.0]]], [1.0], [1.0])
    with pytest.raises(MethodError, match="the maps share 1 cells"):
        found.agreement(found)


def test_tables_json_and_html_agree(llama, pairs):
    found = activation_patching(
        llama, **pairs, streams=("resid_post", "heads"), groups=list("aabb")
    )
    data = json.loads(json.dumps(found.to_json()))
    place, position, value = found.ranked[0]
    i, j = data["places"].index(str(place)), data["positions"].index(position)
    assert data["normalised"][i][j] == value.value
    assert data["intervals"][i][j] == [value.low, value.high]
    assert str(value) in found.table(1) and str(value) in found._repr_html_()
    assert data["items"][0]["answer_tokens"] == [71, 3]
    assert data["labels"][-1] == "-1" and len(data["raw"]) == 4
    alone = activation_patching(
        llama, pairs["clean"][:1], pairs["corrupted"][:1], answers=(71, 3), progress=False
    )
    assert alone.labels[-4:] == ("-4 #42/#13", "-3 #8", "-2 #91", "-1 #33")


def test_patches_along_every_direction_are_whole_patches(llama, pairs):
    whole = activation_patching(llama, **pairs, streams="resid_post")
    same = activation_patching(llama, **pairs, streams="resid_post", along=torch.eye(32))
    np.testing.assert_allclose(same.raw, whole.raw, atol=1e-4)
    unit = torch.randn(32, generator=torch.Generator().manual_seed(0))
    halves = [
        attribution_patching(llama, **pairs, streams="resid_post", along=along)
        for along in (unit, torch.linalg.svd(unit[None])[2][1:])
    ]
    total = attribution_patching(llama, **pairs, streams="resid_post")
    # First-order effects of a direction and of all that is orthogonal to it add up.
    np.testing.assert_allclose(
        sum(h.raw - h.corrupted[:, None, None] for h in halves),
        total.raw - total.corrupted[:, None, None],
        atol=1e-4,
    )
    for wrong, error, match in (
        (torch.ones(5), DirectionError, "of width 32"),
        (torch.ones(2, 32), DirectionError, "span fewer dimensions"),
        (torch.full((32,), torch.nan), DirectionError, "all finite"),
    ):
        with pytest.raises(error, match=match):
            activation_patching(llama, **pairs, along=wrong)
    with pytest.raises(SiteError, match="leave out heads"):
        activation_patching(llama, **pairs, along=unit, streams="heads")


@pytest.fixture(scope="module")
def constructed() -> Any:
    import steerkit as sk

    return sk.load("organism:constructed")


@pytest.fixture(scope="module")
def twins(constructed: Any) -> Contrast:
    """Harmful requests and their look-alikes: same template, same verb, another object."""
    harmful = requests("held_out", "harmful", 200, seed=3)
    innocent = {(r.template, r.words[0]): r for r in requests("held_out", "lookalike", 200, seed=3)}
    two = [(r, innocent.get((r.template, r.words[0]))) for r in harmful]
    both = list({b.text: (a, b) for a, b in two if b is not None}.values())[:16]
    return Contrast.of(
        [Prompt(a.text, group=a.template) for a, _ in both],
        [Prompt(b.text, group=a.template) for a, b in both],
        paired=True,
    )


def test_along_the_planted_vector_the_effect_appears_at_its_layer(constructed, twins):
    """Nothing lies along it before block 2 writes it; after block 3 has read it, it is spent."""
    planted = truth().construction
    unit = torch.tensor(planted.unit)
    found = activation_patching(
        constructed, twins, along=unit, streams=("resid_post", "mlp_out"), positions=[-2, -1],
        progress=False,
    )  # fmt: skip
    for layer in range(4):
        at_end = found.estimate(Site(layer), -1)
        assert abs(found.estimate(Site(layer), -2).value) < 0.01
        if layer == planted.layer:
            assert at_end.low > 0.9
            assert found.estimate(Site(layer, "mlp_out"), -1).low > 0.9
        elif layer < planted.layer:
            assert abs(at_end.value) < 0.01
        else:
            # The unembedding is blind to it; what is left is that it fills the final norm.
            assert abs(at_end.value) < 0.3
    assert found.peak().place in (Site(planted.layer), Site(planted.layer, "mlp_out"))


def test_whole_states_show_where_harm_was_known_before_it_was_written(constructed, twins):
    """The last token knows from block 0 on; the MLPs of blocks 2 and 3 write and read."""
    planted = truth().construction
    found = activation_patching(
        constructed, twins, streams=("resid_post", "attn_out", "mlp_out"), positions=[-1],
        progress=False,
    )  # fmt: skip
    assert all(found.estimate(Site(layer), -1).low > 0.95 for layer in range(4))
    for layer in (planted.layer, planted.layer + 1):
        assert found.estimate(Site(layer, "mlp_out"), -1).low > 0.9
    later = [found.estimate(Site(layer, "attn_out"), -1).high for layer in (2, 3)]
    assert max(later) < 0.05


def test_what_is_1_by_definition_is_no_peak(constructed, twins):
    settings: dict[str, Any] = {"streams": ("resid_post", "mlp_out"), "progress": False}
    every = {f"resid_post@{layer}" for layer in range(4)}
    for positions, certain in (([-1], {"resid_post@3"}), ("whole", every)):
        found = activation_patching(constructed, twins, positions=positions, **settings)
        flat = found.certain[:, 0]
        assert {str(p) for p, c in zip(found.places, flat, strict=True) if c} == certain
        np.testing.assert_allclose(found.normalised[flat], 1, atol=1e-4)
        assert str(found.peak().place) not in certain
        assert not any(f"largest: {name}," in found.summary() for name in certain)
    alone = activation_patching(
        constructed, twins, streams="resid_post", layers=[3], positions=[-1], progress=False
    )
    assert alone.peak().place == Site(3)


def test_first_order_is_not_enough_where_neurons_saturate(constructed, twins):
    """A known failure: the writer's gates are shut on the corrupted run, so no gradient passes."""
    settings: dict[str, Any] = {"streams": "resid_post", "layers": [0, 1], "positions": [-1]}
    real = activation_patching(constructed, twins, progress=False, **settings)
    first = attribution_patching(constructed, twins, progress=False, **settings)
    assert real.normalised.min() > 0.95
    assert np.abs(first.normalised).max() < 0.3


def test_tokens_without_text_have_numbers(llama):
    found = activation_patching(
        llama, [Tokenized((5, 6))], [Tokenized((7, 6))], answers=(1, 2), progress=False
    )
    assert found.labels == ("-2 #5/#7", "-1 #6")

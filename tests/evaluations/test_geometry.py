"""Alignment quality: a fixed scale, honest intervals and nulls, and what it does not say."""

import numpy as np
import pytest
import torch
from scipy.stats import binom

import steerkit as sk
from steerkit.activations import Activations
from steerkit.datasets import refusal
from steerkit.errors import ActivationError, MethodError
from steerkit.evaluations import alignment_quality, index_beyond_auc
from steerkit.evaluations.geometry import _estimated, _quality
from steerkit.prompts import Prompt
from steerkit.protocols import ModelInfo
from steerkit.site import Site
from steerkit.statistics import null, permutations, row_draws

INFO = ModelInfo("planted", "fake", 3, 6, 9, 64, ("resid_post",), "float32", "cpu", "f")
FAST = {"n_permutations": 59, "n_resamples": 200}


def planted(n=40, gap=3.0, seed=0, sites=2, labels=None, texts=None):
    """Two clouds `gap` apart at the last site and alike at those before it."""
    rng = np.random.default_rng(seed)
    y = np.repeat([1, 0], n) if labels is None else np.asarray(labels)
    x = rng.standard_normal((len(y), sites, 6))
    x[:, -1, 0] += gap * y
    prompts = texts or [f"w{rng.integers(50)} w{rng.integers(50)} {i}" for i in range(len(y))]
    return Activations(
        torch.tensor(x, dtype=torch.float32),
        tuple(Site(i) for i in range(sites)),
        tuple(Prompt(t) for t in prompts),
        tuple(int(v) for v in y),
        tuple(f"g{i}" for i in range(len(y))),
        "mean_prompt",
        INFO,
    )


def test_the_index_is_the_share_of_variance_between_the_sides():
    acts = planted(400, gap=3.0, seed=1)
    found = alignment_quality(acts, weights={1: 1.0}, **FAST)
    # Between: (gap/2)^2 of gap^2/4 + 6 unit variances.
    assert found.quality.value == pytest.approx(100 * 2.25 / 8.25, abs=2.5)
    assert found.quality.low < 100 * 2.25 / 8.25 < found.quality.high
    assert found.null.p == 1 / 60 and found.index("calinski_harabasz").z > 10
    assert found.index("xie_beni").z > 0 and np.isnan(found.index("dunn").value.low)
    chi, xb = (found.index(n).value.value for n in ("calinski_harabasz", "xie_beni"))
    assert chi == pytest.approx(798 / (4 * xb))
    assert found.along == pytest.approx(1 / 6, abs=0.05)
    assert [s.weight for s in found.sites] == [0, 1] and abs(found.sites[0].quality.value) < 2
    assert 0.4 < found.text_auc.value < 0.6 and "of 100" in found.summary()


def test_scale_of_a_site_shift_and_rotation_change_nothing():
    acts = planted()
    first = alignment_quality(acts, **FAST)
    values = acts.values.double()
    values[:, 0] *= 1000  # norms grow with depth; a weight is still what it says
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))[0]
    values = values @ turn.double() + 5
    moved = Activations(
        values.float(), acts.sites, acts.prompts, acts.labels, acts.groups, "mean_prompt", INFO
    )
    again = alignment_quality(moved, **FAST)
    assert again.quality.value == pytest.approx(first.quality.value, rel=1e-3)
    whole = alignment_quality(acts, n_components=6, **FAST)
    assert whole.quality.value == pytest.approx(first.quality.value, rel=1e-6)
    assert whole.space == "6 principal components"


def test_sizes_are_matched_before_anything_is_compared():
    labels = [1] * 30 + [0] * 90
    found = alignment_quality(planted(labels=labels), **FAST)
    assert found.n == (30, 30) and found.left_out == 60
    fewer = alignment_quality(planted(labels=labels), n_per_class=20, **FAST)
    assert fewer.n == (20, 20)


def test_padding_never_enters(tiny_model):
    """The published code averages over padding, so an index depends on what is batched."""
    contrast = sk.Contrast.of(
        ["a dog", "the cat was very happy in the house today", "sun", "good food and a tree"],
        ["bad rain", "one film was sad and the book was not good", "big", "two red birds"],
    )
    alone = sk.capture(
        tiny_model, contrast, positions="mean_prompt", token_budget=1, progress=False
    )
    padded = sk.capture(tiny_model, contrast, positions="mean_prompt", progress=False)
    a, b = (
        alignment_quality(x, n_folds=2, n_permutations=9, n_resamples=20) for x in (alone, padded)
    )
    assert a.quality.value == pytest.approx(b.quality.value, rel=1e-4)


def test_false_alarms_are_as_stated_and_a_planted_gap_is_found():
    rng = np.random.default_rng(0)
    alarms, hits, n = 0, 0, 1000
    labels = np.repeat([0, 1], 20)
    groups = [f"g{i}" for i in range(40)]
    for _ in range(n):
        x = rng.standard_normal((40, 12)) @ np.diag(np.linspace(0.2, 3, 12))
        y = permutations(labels, groups, 39, rng)
        chance = _quality(x, y)
        alarms += null("", float(_quality(x, labels[:, None])[0]), chance).p <= 0.05
        x[labels == 1] += 1.0
        hits += null("", float(_quality(x, labels[:, None])[0]), _quality(x, y)).p <= 0.05
    low, high = binom.ppf([0.0005, 0.9995], n, 0.05)
    assert low <= alarms <= high
    assert hits / n > 0.8


def test_intervals_hold_the_true_share_as_often_as_they_say():
    rng = np.random.default_rng(1)
    covered, n, true = 0, 400, 100 * 1 / (1 + 4)
    labels = np.repeat([0, 1], 40)
    groups = [f"g{i // 2}" for i in range(80)]
    for i in range(n):
        x = rng.standard_normal((80, 4))
        x[:, 0] += 2 * labels
        draws = row_draws(groups, n_resamples=300, seed=i)
        found = _estimated(x, labels, groups, draws)[0]
        covered += found.low <= true <= found.high
    assert 0.915 <= covered / n <= 0.98


def test_the_gain_over_another_model_is_paired():
    acts, weaker = planted(gap=3.0), planted(gap=2.0)
    found = alignment_quality(acts, against=weaker, **FAST)
    assert found.gain.value == pytest.approx(found.quality.value - found.against.value)
    assert found.gain.low > 0
    # The same rows but for the gap: a paired interval is tighter than either.
    assert found.gain.high - found.gain.low < found.quality.high - found.quality.low
    same = alignment_quality(acts, against=acts, **FAST)
    assert (same.gain.value, same.gain.low, same.gain.high) == (0, 0, 0)


def test_topics_lie_apart_before_any_alignment():
    contrast = refusal("held_out", n=60)
    found = {
        name: alignment_quality(
            sk.capture(
                sk.load(f"organism:{name}"), contrast, positions="mean_prompt", progress=False
            ),
            **FAST,
        )
        for name in ("base", "aligned")
    }
    base = found["base"]
    assert base.null.p < 0.05 and base.auc.value > 0.9, "a base model that refuses nothing"
    assert base.text_auc.value > 0.95, "and the words alone"
    assert abs(found["aligned"].quality.value - base.quality.value) < 5
    assert "nothing says that this is alignment" in base.summary()


def test_what_the_index_adds_to_an_auc_is_asked_over_models():
    rng = np.random.default_rng(2)
    auc = rng.uniform(0.6, 1.0, 12)
    copy = index_beyond_auc(auc**2, auc, auc + 0.02 * rng.standard_normal(12), n_permutations=199)
    assert copy.quality > 0.9 and copy.partial.value == 0 and copy.null.p == 1
    own = rng.uniform(0, 1, 12)
    more = index_beyond_auc(own, auc, own + 0.1 * auc, n_permutations=499)
    assert more.partial.value > 0.8 and more.null.p < 0.02
    assert more.partial.low <= more.partial.value <= more.partial.high
    with pytest.raises(MethodError, match="at least 5 models; got 3, 3, 3"):
        index_beyond_auc([1, 2, 3], [1, 2, 3], [1, 2, 3])


def test_what_has_no_geometry_is_refused():
    acts = planted(6)
    tokens = acts.select([0, 0, 1, *range(2, 12)])
    with pytest.raises(ActivationError, match="one row a prompt"):
        alignment_quality(tokens)
    with pytest.raises(MethodError, match="for each of 2 sites"):
        alignment_quality(acts, weights=[1.0])
    with pytest.raises(MethodError, match="resid_post@2, which was not captured"):
        alignment_quality(acts, weights={2: 1.0})
    with pytest.raises(MethodError, match="n_per_class is 2 to 6"):
        alignment_quality(acts, n_per_class=7)
    with pytest.raises(MethodError, match="n_components is 1 to 6"):
        alignment_quality(acts, n_components=9)
    with pytest.raises(ActivationError, match="read other prompts"):
        alignment_quality(acts, against=planted(6, seed=1))


def test_the_result_says_everything(tmp_path):
    import json

    found = alignment_quality(planted(), **FAST)
    data = json.loads(json.dumps(found.to_json()))
    assert data["quality"]["unit"] == "of 100" and data["sites"][0]["site"] == "resid_post@0"
    assert {i["name"] for i in data["indices"]} == {
        "calinski_harabasz", "xie_beni", "davies_bouldin", "dunn",
    }  # fmt: skip
    assert "xie-beni" in found.table() and "<table>" in found._repr_html_()

"""Directional derivatives, their sign counts, and the trap of the published score."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import binom

import steerkit as sk
from steerkit.batch import Positions
from steerkit.concepts import tcav
from steerkit.concepts.gradients import gradients
from steerkit.concepts.sensitivity import sign_test
from steerkit.errors import DirectionError, MethodError
from steerkit.organisms import sentiment
from steerkit.prompts import Contrast, Prompt
from steerkit.site import Site

PROMPTS = ["the cat was happy", "i loved the big red house", "the rain was bad", "a sad film"]


@pytest.fixture(scope="module")
def contrast():
    nouns = ("cat", "dog", "bird", "film", "book", "food", "day", "house")
    return Contrast.of(
        [f"the {n} was very happy" for n in nouns], [f"the {n} was very sad" for n in nouns],
        paired=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def acts(tiny_model, contrast):
    return sk.capture(tiny_model, contrast, progress=False)


@pytest.mark.parametrize("positions", ["last_prompt", "all", -2])
def test_the_derivative_is_the_limit_of_steering(tiny_model, acts, positions):
    direction = sk.extract(acts, "mean_difference", n_folds=0, progress=False).at(1)
    tokens = torch.tensor([20, 21, 22, 23])

    def target(logits, rows):
        return logits.gather(1, tokens[rows][:, None])[:, 0]

    found, values = gradients(
        tiny_model, PROMPTS, target, [direction.site], Positions.of(positions)
    )
    derivative = found[:, 0] @ direction.unit.double() * direction.scale

    def moved(strength):
        steered = tiny_model.with_(sk.Add(direction, strength, positions=positions))
        logits = steered.run(steered.encode(PROMPTS), logits="last").logits[:, -1]
        return target(logits, torch.arange(4)).double()

    step = 0.05 / direction.scale
    finite = (moved(step) - moved(-step)) / (2 * step)
    assert torch.allclose(derivative, finite, rtol=2e-2, atol=2e-4)
    assert torch.allclose(values, moved(0.0), atol=1e-5)


def test_at_the_last_layer_the_derivative_is_that_of_the_norm_and_the_head(tiny_model):
    site = Site.parse("resid_post@2")
    found, _ = gradients(
        tiny_model, PROMPTS, lambda logits, rows: logits[:, 20], [site], Positions.of("last_prompt")
    )
    batch = tiny_model.encode(PROMPTS)
    x = tiny_model.run(batch, sites=[site]).streams[site][:, -1].double()
    network = tiny_model.network
    read = (network.lm_head.weight[20] * network.model.norm.weight).double()
    rms = (x.square().mean(1, keepdim=True) + network.config.rms_norm_eps).sqrt()
    expected = read / rms - x * (x @ read)[:, None] / (x.shape[1] * rms**3)
    assert torch.allclose(found[:, 0], expected.detach(), rtol=1e-4, atol=1e-7)


def test_order_and_batches_do_not_matter(tiny_model, acts):
    site, rule = [acts.sites[1]], Positions.of("last_prompt")
    metric = lambda logits, rows: logits[:, 20] * (rows + 1)  # noqa: E731
    whole, _ = gradients(tiny_model, PROMPTS, metric, site, rule)
    split, _ = gradients(tiny_model, PROMPTS, metric, site, rule, token_budget=1)
    assert torch.allclose(whole, split, rtol=1e-4, atol=1e-7)


def test_a_gradient_leaves_no_trace(tiny_model, acts):
    tcav(tiny_model, acts, PROMPTS, "happy", n_random=3)
    assert all(p.grad is None for p in tiny_model.network.parameters())


def test_the_sign_test_is_the_binomial_one_and_counts_groups():
    values = np.array([1.0, 2.0, -1.0, 3.0, 1.0, 1.0, 0.0])
    assert sign_test(values, list("abcdefg")) == pytest.approx(2 * binom.cdf(1, 6, 0.5))
    # Prompts of a group have one vote, however many they are.
    assert sign_test([1.0] * 10, ["a"] * 5 + ["b"] * 5) == 0.5


def test_the_verdict_of_unseen_reviews_depends_on_sentiment():
    """Fitted and asked on other words, other templates; balanced, so that no word decides."""
    model = sk.load("organism:base")

    def sides(split, n, seed):
        items = sentiment(split, n, seed=seed)
        made = [(Prompt(f"{i.text} i", group=i.group, template="raw"), i.label) for i in items]
        return [p for p, label in made if label], [p for p, label in made if not label]

    taken = sk.capture(model, Contrast.of(*sides("train", 100, 0)), progress=False)
    asked = [p for side in sides("held_out", 40, 1) for p in side]
    found = tcav(model, {"sentiment": taken}, asked, ("liked", "hated"), method="mean_difference")
    assert len(found.found) == len(found.cells) == 4
    assert all(cell.score.value == 1 and cell.sensitivity.low > 1 for cell in found.cells)
    # The other way round the score is 0.
    other = tcav(model, taken, asked, ("hated", "liked"), method="mean_difference").at(2)
    assert other.score.value == 0 and other.found
    assert json.loads(json.dumps(found.to_json()))["target"] == "logit(liked) - logit(hated)"
    assert "resid_post@2" in found.table() and "nats per strength" in found._repr_html_()


def test_a_meaningless_concept_passes_the_sign_test_and_not_the_null(tiny_model):
    """The published trap: against 0.5 nearly every random vector is significant."""
    rng = np.random.default_rng(0)
    words = ["cat", "dog", "sun", "rain", "house", "tree", "river", "film", "book", "food", "day"]
    ends = ["was very big", "is not small", "and the cake", "in the river", "with you"]
    texts = [Prompt(f"{a} {w} {e}") for a in ("the", "a") for w in words for e in ends]
    acts = sk.capture(tiny_model, texts, layers=[1], progress=False)
    asked = [f"i loved the {w}" for w in words]
    signed, found = [], []
    for seed in range(200):
        labels = rng.permutation(np.arange(len(texts)) % 2)
        named = sk.Activations(
            acts.values, acts.sites, acts.prompts, tuple(labels.tolist()),
            tuple(f"p{i}" for i in range(len(texts))), acts.pooling, acts.info,
        )  # fmt: skip
        cell = tcav(
            tiny_model, named, asked, 20, method="mean_difference", n_random=99, seed=seed
        ).cells[0]
        signed.append(cell.p_sign < 0.05)
        found.append(cell.p < 0.05)
    assert np.mean(signed) > 0.5
    assert sum(found) <= binom.ppf(0.9995, 200, 0.05)


def test_a_planted_concept_is_found_in_spite_of_the_correction(tiny_model, acts):
    found = tcav(tiny_model, {"a": acts, "b": acts}, PROMPTS, "happy", n_random=99)
    assert len(found.cells) == 6
    assert all(c.p_adjusted >= c.p for c in found.cells)
    with pytest.raises(MethodError, match="2 cells"):
        found.at(1)


def test_bad_input_is_refused(tiny_model, acts):
    with pytest.raises(MethodError, match="needs concepts and prompts"):
        tcav(tiny_model, {}, PROMPTS, "happy")
    with pytest.raises(MethodError, match="n_random is at least 1"):
        tcav(tiny_model, acts, PROMPTS, "happy", n_random=0)
    with pytest.raises(MethodError, match="same token"):
        tcav(tiny_model, acts, PROMPTS, ("happy", "happy day"))
    with pytest.raises(MethodError, match="no token of prompt"):
        tcav(tiny_model, acts, PROMPTS, "happy", positions="generated")
    with pytest.raises(DirectionError, match="capture them there"):
        tcav(sk.load("organism:base"), acts, PROMPTS, "happy")
    with pytest.raises(MethodError, match="no gradient"):
        tcav(tiny_model, acts, PROMPTS, lambda logits, rows: logits.detach()[:, 0])

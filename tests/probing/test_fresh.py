"""An untrained model: the same architecture and tokenizer, weights that learnt nothing."""

from dataclasses import replace

import pytest
import torch

import steerkit as sk
from steerkit import datasets
from steerkit.errors import ActivationError, ModelError
from steerkit.probing.fresh import activations_of, untrained
from steerkit.probing.verbs import one_row_each
from steerkit.prompts import Contrast


@pytest.fixture(scope="module")
def contrast() -> Contrast:
    things = ["cat", "dog", "house", "river", "tree", "book"]
    return Contrast.of(
        [f"the {thing} was good ." for thing in things],
        [f"the {thing} was bad ." for thing in things],
        paired=True,
    )


def test_it_is_the_same_architecture_with_other_weights(tiny_model):
    drawn = untrained(tiny_model, seed=1)
    old, new = tiny_model.network.state_dict(), drawn.network.state_dict()
    assert {k: v.shape for k, v in old.items()} == {k: v.shape for k, v in new.items()}
    assert type(drawn.network) is type(tiny_model.network)
    assert drawn.info.fingerprint != tiny_model.info.fingerprint
    weight = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(old[weight], new[weight])
    assert new[weight].std() == pytest.approx(
        float(tiny_model.network.config.initializer_range), rel=0.05
    )
    prompt = ["the cat was good ."]
    assert torch.equal(drawn.encode(prompt).tokens, tiny_model.encode(prompt).tokens)
    assert drawn.info.name.endswith(", untrained") and not drawn.network.training


def test_the_seed_decides_and_nothing_else_moves(tiny_model):
    before = {k: v.clone() for k, v in tiny_model.network.state_dict().items()}
    state = torch.random.get_rng_state()
    weight = "lm_head.weight"
    one, same, other = (untrained(tiny_model, seed=s).network.state_dict() for s in (0, 0, 1))
    assert torch.equal(one[weight], same[weight]) and not torch.equal(one[weight], other[weight])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in tiny_model.network.state_dict().items())


def test_what_cannot_be_drawn_afresh_says_what_to_do():
    class Network:
        config = None

    class Model:
        network = Network()
        info = type("Info", (), {"name": "odd"})()

    with pytest.raises(ModelError, match="cannot be drawn afresh; load odd through Hugging Face"):
        untrained(Model())  # type: ignore[arg-type]


@pytest.mark.parametrize("positions", ["last", "mean_prompt", -2])
def test_a_control_is_read_as_the_model_was(tiny_model, contrast, positions):
    drawn = untrained(tiny_model, seed=1)  # seed 0 is how the tiny model itself was drawn
    options = {"positions": positions, "layers": [0, 2], "exclude_bos": True, "progress": False}
    data = one_row_each(sk.capture(tiny_model, contrast, **options))
    expected = sk.capture(drawn, contrast, **options)
    found = activations_of(drawn, data, progress=False)
    torch.testing.assert_close(found.acts.values, expected.values)
    ready = activations_of(expected, data, progress=False)
    assert torch.equal(ready.rows(1), found.rows(1))


def test_controls_that_are_none_are_refused(tiny_model, contrast):
    acts = sk.capture(tiny_model, contrast, layers=[1], progress=False)
    data = one_row_each(acts)
    with pytest.raises(ModelError, match="is the model that the activations came from"):
        activations_of(tiny_model, data, progress=False)
    with pytest.raises(ActivationError, match="on the same prompts in the same order"):
        activations_of(acts.select(range(4)), data, progress=False)
    with pytest.raises(ActivationError, match="at the same sites"):
        elsewhere = sk.capture(tiny_model, contrast, layers=[2], progress=False)
        activations_of(elsewhere, data, progress=False)
    spanned = one_row_each(replace(acts, pooling="span('was')"))
    with pytest.raises(ActivationError, match="capture the control with the same Span"):
        activations_of(untrained(tiny_model, seed=1), spanned, progress=False)


def test_an_untrained_model_reads_about_what_random_features_of_the_words_do():
    """Where words tell it reads them, as random embeddings do; where they do not, nothing."""
    model = sk.load("organism:aligned")
    drawn = untrained(model)
    quick = {"n_permutations": 0, "n_random": 0, "progress": False}
    told = datasets.contrast("politeness")
    acts = sk.capture(drawn, told, positions="mean_prompt", progress=False)
    embedding = torch.randn(
        model.info.d_vocab, model.info.d_model, generator=torch.Generator().manual_seed(0)
    )
    bags = torch.stack([embedding[list(t.prompt)].mean(0) for t in model.tokenize(told.prompts)])
    features = replace(acts, values=bags[:, None], sites=acts.sites[:1])
    blank, random = (sk.probe(a, "ridge", **quick).auc for a in (acts, features))
    assert random.value > 0.9 and abs(blank.value - random.value) < 0.05
    balanced = datasets.contrast("truth_balanced")
    acts = sk.capture(drawn, balanced, positions="mean_prompt", progress=False)
    assert sk.probe(acts, "ridge", **quick).auc.low < 0.5

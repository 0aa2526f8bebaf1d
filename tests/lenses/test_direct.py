"""Contributions add up to what the model says, and each is what removing it says."""

import json

import numpy as np
import pytest
import torch

import steerkit as sk
from steerkit.batch import Batch, Tokenized
from steerkit.direction import Direction
from steerkit.errors import MethodError, ModelError, PromptError, SiteError
from steerkit.lenses import direct_logit_attribution
from steerkit.models import tail as tails
from steerkit.site import Site

PROMPTS = [(5, 17, 42, 8, 91, 33), (9, 14, 77, 3), (64, 5, 5, 28, 13)]
ANSWERS = (71, 3)


def attributed(model, prompts=PROMPTS, answers=ANSWERS, **settings):
    return direct_logit_attribution(model, [Tokenized(p) for p in prompts], answers, **settings)


def raw_logits(model, prompt):
    """The network's own last logits, a softcap of 5 undone."""
    with torch.no_grad():
        logits = model.network(torch.tensor([prompt])).logits[0, -1].double()
    return 5 * torch.atanh(logits / 5) if "gemma" in model.info.name else logits


def direction(model, site):
    unit = torch.randn(32, generator=torch.Generator().manual_seed(4))
    unit = unit / unit.norm()
    return Direction(unit, 2.0, Site.parse(site), "planted", "x", 1.0, -1.0, model.info, "last")


@pytest.mark.parametrize("heads", [False, True])
def test_contributions_add_up_to_the_logit_difference(model, heads):
    found = attributed(model, heads=heads)
    for i, prompt in enumerate(PROMPTS):
        logits = raw_logits(model, prompt)
        expected = float(logits[71] - logits[3])
        size = np.abs(found.values[i]).sum()
        assert abs(found.values[i].sum() - expected) < 1e-5 * size
        assert abs(found.total[i] - expected) < 1e-5 * size
    assert found.error < 1e-5
    assert len(found.components) == (1 + 3 * 6 + 1 if heads else 1 + 6 + 1)


def test_heads_add_up_to_their_layer(model):
    whole, split = attributed(model), attributed(model, heads=True)
    for layer in range(3):
        names = [f"head{h}@{layer}" for h in range(4)] + [f"attn_bias@{layer}"]
        parts = sum(split.values[:, split.components.index(n)] for n in names)
        expected = whole.values[:, whole.components.index(f"attn_out@{layer}")]
        np.testing.assert_allclose(parts, expected, atol=1e-5 * np.abs(whole.values).max())
        mlp = f"mlp_out@{layer}"
        np.testing.assert_allclose(
            split.values[:, split.components.index(mlp)],
            whole.values[:, whole.components.index(mlp)],
            atol=1e-6,
        )


def test_what_is_left_of_attention_is_its_bias(model):
    """Networks without biases leave nothing; others leave the projection's, the same everywhere."""
    found = attributed(model, heads=True)
    left = found.values[:, [c.startswith("attn_bias") for c in found.components]]
    size = np.abs(found.values).max()
    if "gpt" not in model.info.name:
        assert np.abs(left).max() < 1e-5 * size
        return
    network = model.network
    layer = (network.transformer.h if "gpt2" in model.info.name else network.gpt_neox.layers)[0]
    bias = layer.attn.c_proj.bias if "gpt2" in model.info.name else layer.attention.dense.bias
    head = network.get_output_embeddings().weight
    norm = model.engine.final_norm()
    with torch.no_grad():
        gap = (head[71] - head[3]) * norm.weight @ (bias - bias.mean())
        last = model.run(Batch.collate([Tokenized(PROMPTS[0])], pad_id=0), sites=[Site(2)]).streams[
            Site(2)
        ][0, -1]
        scale = (last.var(correction=0) + norm.eps).sqrt()
    assert left[0, 0] == pytest.approx(float(gap / scale), rel=1e-4)


def test_a_contribution_is_what_its_removal_from_the_last_state_takes_away(model):
    """With the norm's scale held: by hand, on the last stream and the final norm's own scale."""
    found = attributed(model, PROMPTS[:1])
    part = Site(1, "mlp_out")
    run = model.run(
        Batch.collate([Tokenized(PROMPTS[0])], pad_id=0), sites=[part, Site(2)], logits="last"
    )
    x, c = run.streams[Site(2)][0, -1:], run.streams[part][0, -1:]
    norm, head = model.engine.final_norm(), model.network.get_output_embeddings()
    centre = "gpt" in model.info.name
    with torch.no_grad():
        centred = [v - v.mean() if centre else v for v in (x, c)]
        size = (centred[0].pow(2).mean() + getattr(norm, "eps", 1e-5)).sqrt()
        gain = (norm(x) - (norm.bias if centre else 0)) * size / centred[0]
        read = head(gain * centred[1] / size)[0] - head(torch.zeros_like(x))[0]
    scale = 1 / 3 if "granite" in model.info.name else 1
    expected = float(read[71] - read[3]) * scale
    j = found.components.index("mlp_out@1")
    assert found.values[0, j] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_a_direction_s_projection_is_a_sum_of_what_comes_before_it(model):
    for site in (s for s in ("resid_post@1", "resid_pre@2", "resid_mid@1", "attn_out@1")):
        if Site.parse(site).stream not in model.info.streams:
            continue
        d = direction(model, site)
        for heads in (False, True):
            found = attributed(model, answers=None, direction=d, heads=heads)
            for i, prompt in enumerate(PROMPTS):
                batch = Batch.collate([Tokenized(prompt)], pad_id=0)
                stream = model.run(batch, sites=[d.site]).streams[d.site][0, -1]
                size = np.abs(found.values[i]).sum()
                assert abs(found.total[i] - float(stream @ d.unit)) < 1e-5 * size
                assert abs(found.values[i].sum() - found.total[i]) < 1e-5 * size
            assert "mlp_out@2" not in found.components and "bias" not in found.components


def test_the_tokens_that_a_direction_promotes(tiny_model):
    unit = tiny_model.network.lm_head.weight[20].detach().clone()
    unit = unit / unit.norm()
    d = Direction(unit, 1.0, Site(2), "planted", "x", 1.0, -1.0, tiny_model.info, "last")
    found = direct_logit_attribution(tiny_model, ["the cat was"], direction=d)
    assert found.promoted[0][0] == tiny_model.tokenizer.decode([20])
    assert f"promotes {found.promoted[0][0]}" in found.summary()


def test_what_a_view_adds_is_a_component_of_its_own(llama):
    view = llama.with_(sk.Add(direction(llama, "resid_post@1"), strength=3.0))
    found, plain = attributed(view), attributed(llama)
    j = found.components.index("interventions")
    assert found.error < 1e-5 and np.abs(found.values[:, j]).min() > 1e-3
    # Before the steered layer nothing is another contribution, read with another scale.
    assert plain.components == found.components[:-1]
    same = attributed(llama.with_(sk.Add(direction(llama, "attn_out@1"), strength=3.0)))
    assert np.abs(same.values[:, same.components.index("interventions")]).max() < 1e-4


def test_tables_and_json(llama):
    found = attributed(llama, groups=["a", "a", "b"])
    assert found.estimate("embedding").value == pytest.approx(found.values[:, 0].mean())
    assert found.whole.n == 2
    assert found.ranked[0][0] in found.table(1)
    assert json.loads(json.dumps(found.to_json()))["components"][0] == "embedding"
    assert "<table>" in found._repr_html_()
    with pytest.raises(MethodError, match="did you mean 'embedding'"):
        found.estimate("embeding")


def test_another_position(llama):
    found = attributed(llama, PROMPTS[:1], position=-2)
    logits = llama.run(Batch.collate([Tokenized(PROMPTS[0])], pad_id=0)).logits[0, -2]
    assert found.total[0] == pytest.approx(float(logits[71] - logits[3]), rel=1e-4)
    with pytest.raises(PromptError, match=r"prompts \[1\] have no position -5"):
        attributed(llama, position=-5)


def test_blocks_that_do_not_show_their_parts_are_components(opaque):
    found = attributed(opaque)
    assert found.components == ("embedding", "block@0", "block@1", "block@2", "bias")
    for i, prompt in enumerate(PROMPTS):
        logits = opaque.run(Batch.collate([Tokenized(prompt)], pad_id=0)).logits[0, -1]
        assert found.values[i].sum() == pytest.approx(float(logits[71] - logits[3]), abs=1e-4)
    along = attributed(opaque, answers=None, direction=direction(opaque, "resid_pre@2"))
    assert along.components == ("embedding", "block@0", "block@1") and along.error < 1e-5
    with pytest.raises(SiteError, match="its blocks do not expose what attention adds"):
        attributed(opaque, heads=True)


def test_what_cannot_be_decomposed_says_why(llama, monkeypatch):
    with pytest.raises(MethodError, match="either answers"):
        attributed(llama, answers=None)
    with pytest.raises(MethodError, match="either answers"):
        attributed(llama, direction=direction(llama, "resid_post@1"))
    with pytest.raises(PromptError, match="one group a prompt"):
        attributed(llama, groups=["a"])
    with pytest.raises(SiteError, match="unavailable"):
        monkeypatch.setattr(llama.engine, "config", object())
        attributed(llama, heads=True)
    monkeypatch.undo()
    monkeypatch.setattr(tails, "_near", lambda *_: False)
    with pytest.raises(ModelError, match="logits cannot be decomposed"):
        attributed(llama)

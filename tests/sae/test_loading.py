"""What SAELens loads is loaded as it is, and what is not what it says is refused."""

import json
from typing import Any

import pytest
import torch
from sae_lens import SAE

import steerkit as sk
from steerkit.errors import ActivationError, ModelError, SiteError
from steerkit.interventions.set_features import site_of_hook
from steerkit.sae import load_sae
from steerkit.site import Site

TEXTS = ["the cat is happy", "i loved the big red book", "tell me how to make a cake"] * 4


@pytest.fixture(scope="module")
def model(tiny_folder: Any) -> Any:
    return sk.load(tiny_folder)


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk", "gated", "normalised"])
def test_encode_and_decode_are_saelens_own(saved: Any, kind: str) -> None:
    folder = saved(kind)
    ours, theirs = load_sae(folder), SAE.load_from_disk(folder)
    x = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = theirs.encode(x)
        rebuilt = theirs.decode(wanted)
    torch.testing.assert_close(ours.encode(x), wanted, rtol=0, atol=0)
    features, out = ours.reconstruct(x)
    torch.testing.assert_close(features, wanted, rtol=0, atol=0)
    torch.testing.assert_close(out, rebuilt, rtol=0, atol=0)
    assert (wanted != 0).any() and ours.architecture == theirs.cfg.architecture()


@pytest.mark.parametrize("kind", ["standard", "topk"])
def test_the_decoder_row_is_what_a_feature_writes(saved: Any, kind: str) -> None:
    ours = load_sae(saved(kind))
    one = torch.zeros(2, 40)
    one[1, 7] = 2.5
    with torch.no_grad():
        none, some = ours.sae.decode(one)
    torch.testing.assert_close(some - none, 2.5 * ours.decoder(7), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.3.hook_resid_post", Site(3)),
        ("blocks.3.hook_resid_mid", Site(3, "resid_mid")),
        ("blocks.3.hook_in", Site(3, "resid_pre")),
        ("blocks.0.hook_attn_out", Site(0, "attn_out")),
        ("model.layers.11", Site(11)),
        ("layers.5", Site(5)),
        ("transformer.h.2", Site(2)),
        ("gpt_neox.layers.4", Site(4)),
        ("model.language_model.layers.8", Site(8)),
    ],
)
def test_hook_names_of_other_libraries_are_sites(hook: str, site: Site) -> None:
    assert site_of_hook(hook) == site


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("model.layers.1.mlp", Site(1, "mlp_out")),
        ("layers.1.self_attn", Site(1, "attn_out")),
        ("blocks.2.mlp.hook_out", Site(2, "mlp_out")),
        ("blocks.0.attn.hook_out", Site(0, "attn_out")),
    ],
)
def test_modules_inside_a_block_are_sites_where_the_model_adds_their_output(
    make: Any, model: Any, hook: str, site: Site
) -> None:
    assert load_sae(make(d=32, hook_name=hook), model=model).site == site
    with pytest.raises(SiteError, match="is no stream that is known"):
        load_sae(make(d=32, hook_name=hook))  # which only a model can tell


def test_a_module_whose_output_is_normed_before_it_is_added_is_no_stream(make: Any) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    small = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    model = sk.wrap(Gemma2ForCausalLM(Gemma2Config(**small, **heads)))
    for hook, norm in (("model.layers.1.mlp", "post_feedforward_layernorm"),
                       ("blocks.0.attn.hook_out", "post_attention_layernorm")):  # fmt: skip
        with pytest.raises(SiteError, match=rf"does not add .* as it is .*'{norm}'"):
            load_sae(make(d=32, hook_name=hook), model=model)
    found = load_sae(make(d=32, hook_name="model.layers.1.mlp"), model=model, site="mlp_out@1")
    assert found.site == Site(1, "mlp_out")
    # TransformerLens' own name is of the contribution, after the norm.
    named = make(d=32, hook_name="blocks.1.hook_mlp_out")
    assert load_sae(named, model=model).site == Site(1, "mlp_out")


@pytest.mark.parametrize("hook", ["blocks.3.attn.hook_z", "model.layers.3.mlp.act_fn", None])
def test_a_hook_that_is_no_stream_needs_a_site(saved: Any, hook: Any) -> None:
    folder = saved(hook_name=hook)
    with pytest.raises(SiteError, match=r"is no stream that is known; say which"):
        load_sae(folder)
    assert load_sae(folder, site="resid_mid@2").site == Site(2, "resid_mid")


def test_a_topk_that_would_be_read_as_relu_is_refused(saved: Any) -> None:
    folder = saved("topk")
    config = json.loads((folder / "cfg.json").read_text())
    for change in (
        {"architecture": "standard"},
        {"architecture": "standard", "k": None, "activation_fn": "topk"},
        {"architecture": "standard", "k": None, "activation_fn_kwargs": {"k": 4}},
    ):
        (folder / "cfg.json").write_text(json.dumps({**config, **change}))
        assert SAE.load_from_disk(folder).cfg.architecture() == "standard"  # in silence
        with pytest.raises(ModelError, match=r"trained as a TopK .* would be read as ReLU"):
            load_sae(folder)


def test_an_object_whose_activation_was_exchanged_is_refused(make: Any) -> None:
    sae = make("topk")
    sae.activation_fn = torch.nn.ReLU()
    with pytest.raises(ModelError, match="with k = 4 but has up to"):
        load_sae(sae)
    sae = make("standard")
    sae.activation_fn = torch.nn.Identity()
    with pytest.raises(ModelError, match="features below 0"):
        load_sae(sae)


def test_width_site_and_weights_belong_to_the_model(saved: Any, make: Any, model: Any) -> None:
    with pytest.raises(ModelError, match=r"width 12 .* has 32"):
        load_sae(saved(), model=model)
    with pytest.raises(SiteError, match=r"no resid_post at layer 9: .* layers 0\.\.2"):
        load_sae(make(d=32, hook_name="blocks.9.hook_resid_post"), model=model)
    other = make(d=32, steerkit_fingerprint="0" * 64, model_name="another")
    with pytest.raises(ModelError, match="was trained on another"):
        load_sae(other, model=model)
    assert load_sae(other, model=model, force=True).checks["same_weights"] is False
    assert load_sae(make(d=32), model=model).info == model.info


def test_l0_and_reconstruction_are_measured_on_the_users_prompts(make: Any, model: Any) -> None:
    """A perfect SAE: h = relu(h) - relu(-h), with a decoder that puts it together again."""
    sae = make(d=32, f=64)
    eye = torch.eye(32)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([eye, -eye], 1))
        sae.W_dec.copy_(torch.cat([eye, -eye]))
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    checks = load_sae(sae, model=model, prompts=TEXTS).checks
    assert checks["variance_explained"] == pytest.approx(1.0, abs=1e-9)
    assert checks["l0"] == pytest.approx(32.0)
    sae.cfg.metadata.l0 = 4.0
    with pytest.raises(ModelError, match=r"32 features are on at a token, and it claims 4;.*ReLU"):
        load_sae(sae, model=model, prompts=TEXTS)
    assert load_sae(sae, model=model, prompts=TEXTS, force=True).checks["l0_claimed"] == 4.0
    sae.cfg.metadata.l0 = 40.0
    with torch.no_grad():
        sae.W_dec.mul_(-1)
    with pytest.raises(ModelError, match=r"explains -7\.47 of the variance at resid_post@1"):
        load_sae(sae, model=model, prompts=TEXTS)


def test_l0_may_be_claimed_by_a_sparsity_file(saved: Any) -> None:
    from safetensors.torch import save_file

    folder = saved()
    save_file({"sparsity": torch.full((40,), -1.0)}, folder / "sparsity.safetensors")
    assert load_sae(folder).claims["l0"] == pytest.approx(4.0)


def test_what_is_not_there_is_said(tmp_path: Any, saved: Any, model: Any) -> None:
    with pytest.raises(ModelError, match=r"no SAE in .* pair \(release, sae_id\)"):
        load_sae(tmp_path)
    with pytest.raises(ModelError, match="SAELens cannot load no-such-release/x"):
        load_sae(("no-such-release", "x"))
    with pytest.raises(ModelError, match=r"named by \(release, sae_id\)"):
        load_sae(("a", "b", "c"))
    folder = saved()
    (folder / "sae_weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="SAELens cannot load the SAE in"):
        load_sae(folder)
    found = load_sae(saved("jumprelu"))
    with pytest.raises(ActivationError, match="width 12; got 13"):
        found.encode(torch.zeros(2, 13))
    with pytest.raises(ModelError, match=r"no feature 40; .* features 0\.\.39"):
        found.decoder(40)
    with pytest.raises(ModelError, match="loaded without a model"):
        found.direction(3, 1.0)
    with pytest.raises(ModelError, match="prompts need a model"):
        load_sae(saved("gated"), prompts=TEXTS)

"""Maps of TransformerLens models, and equality with the library's own patching."""

from typing import Any

import numpy as np
import pytest
import torch

import steerkit as sk
from steerkit.batch import Tokenized
from steerkit.lenses import (
    activation_patching,
    attribution_patching,
    direct_logit_attribution,
    logit_lens,
)

CLEAN, CORRUPTED = (5, 17, 42, 8, 91, 33), (7, 17, 13, 8, 91, 50)
VARIANTS: dict[str, dict[str, Any]] = {
    "sequential": {"positional_embedding_type": "standard", "normalization_type": "LN"},
    "rotary": {
        "positional_embedding_type": "rotary",
        "rotary_dim": 8,
        "normalization_type": "RMS",
        "gated_mlp": True,
    },
    "post-norm": {
        "positional_embedding_type": "rotary",
        "rotary_dim": 8,
        "normalization_type": "RMS",
        "use_normalization_before_and_after": True,
        "output_logits_soft_cap": 4.0,
    },
}


def hooked_transformer(variant: str) -> Any:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=3,
        d_model=32,
        n_heads=4,
        d_head=8,
        d_mlp=48,
        n_ctx=64,
        d_vocab=100,
        act_fn="gelu",
        seed=1,
        device="cpu",
        model_name="tiny-hooked",
        initializer_range=0.2,
        **VARIANTS[variant],
    )
    with torch.random.fork_rng():
        network = HookedTransformer(config).eval()
        torch.manual_seed(3)
        for name, parameter in network.named_parameters():
            if ".b_" in name or name.endswith(".b") or name.endswith(".w"):
                parameter.data += torch.randn(parameter.shape) * 0.2
    return network


@pytest.fixture(scope="module", params=VARIANTS)
def hooked(request: pytest.FixtureRequest) -> Any:
    return sk.wrap(hooked_transformer(request.param))


def theirs(network: Any) -> Any:
    """Tokens of both sides, the clean run's cache, and the metric of a batch of logits."""
    clean, corrupted = torch.tensor([CLEAN]), torch.tensor([CORRUPTED])
    with torch.no_grad():
        _, cache = network.run_with_cache(clean)
    return corrupted, cache, lambda logits: logits[0, -1, 71] - logits[0, -1, 3]


def ours(verb: Any, model: Any, **settings: Any) -> Any:
    return verb(
        model,
        [Tokenized(CLEAN)],
        [Tokenized(CORRUPTED)],
        answers=(71, 3),
        progress=False,
        **settings,
    )


def same(found: Any, expected: torch.Tensor) -> None:
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=2e-5)


def test_streams_are_patched_as_the_library_does(hooked):
    from transformer_lens import patching

    corrupted, cache, metric = theirs(hooked.network)
    verbs = {
        "resid_pre": patching.get_act_patch_resid_pre,
        "resid_mid": patching.get_act_patch_resid_mid,
        "attn_out": patching.get_act_patch_attn_out,
        "mlp_out": patching.get_act_patch_mlp_out,
    }
    for stream, verb in verbs.items():
        with torch.no_grad():
            expected = verb(hooked.network, corrupted, cache, metric)
        same(ours(activation_patching, hooked, streams=stream).raw[0], expected)


def test_heads_are_patched_as_the_library_does(hooked):
    from transformer_lens import patching

    corrupted, cache, metric = theirs(hooked.network)
    with torch.no_grad():
        each = patching.get_act_patch_attn_head_out_by_pos(hooked.network, corrupted, cache, metric)
        whole = patching.get_act_patch_attn_head_out_all_pos(
            hooked.network, corrupted, cache, metric
        )
    found = ours(activation_patching, hooked, streams="heads")
    # Theirs is [layer pos head].
    same(found.raw[0].reshape(3, 4, 6), each.transpose(1, 2))
    found = ours(activation_patching, hooked, streams="heads", positions="whole")
    same(found.raw[0, :, 0].reshape(3, 4), whole)


def test_attribution_is_the_gradient_that_its_hooks_see(hooked):
    """Against a backward pass through the library's own cache of gradients."""
    network = hooked.network
    corrupted, cache, metric = theirs(network)
    names = [f"blocks.{layer}.hook_{s}" for layer in range(3) for s in ("resid_pre", "mlp_out")]
    seen, slopes = {}, {}

    def keep(tensor, hook):
        seen[hook.name] = tensor.detach()

    def keep_slope(tensor, hook):
        slopes[hook.name] = tensor.detach()

    with network.hooks(
        fwd_hooks=[(n, keep) for n in names], bwd_hooks=[(n, keep_slope) for n in names]
    ):
        metric(network(corrupted)).backward()
    network.zero_grad()
    found = ours(attribution_patching, hooked, streams=("resid_pre", "mlp_out"))
    expected = torch.stack([((cache[n] - seen[n]) * slopes[n]).sum(-1)[0] for n in names])
    same(found.raw[0] - found.corrupted[0], expected)


def test_the_logit_lens_is_the_library_s(hooked):
    network = hooked.network
    found = logit_lens(hooked, [Tokenized(CLEAN)], tokens=(71, 3), progress=False)
    with torch.no_grad():
        logits, cache = network.run_with_cache(torch.tensor([CLEAN]))
        states = cache.accumulated_resid(layer=-1, incl_mid=False)[1:, 0]
        read = network.unembed(network.ln_final(states))
    cap = network.cfg.output_logits_soft_cap
    read = cap * torch.tanh(read / cap) if cap > 0 else read
    same(found.logits[0], read[..., [71, 3]])
    same(found.logits[0, -1], logits[0, :, [71, 3]])


@pytest.mark.parametrize("variant", ["sequential", "rotary"])
def test_direct_logit_attribution_is_the_library_s(variant):
    hooked = sk.wrap(hooked_transformer(variant))
    network = hooked.network
    _, cache = network.run_with_cache(torch.tensor([CLEAN]))
    parts, labels = cache.decompose_resid(layer=-1, mode="all", return_labels=True, pos_slice=-1)
    with torch.no_grad():
        scaled = cache.apply_ln_to_stack(parts, layer=-1, pos_slice=-1)[:, 0]
        norm = getattr(network.ln_final, "w", torch.ones(32))
        expected = scaled * norm @ (network.W_U[:, 71] - network.W_U[:, 3])
    found = direct_logit_attribution(hooked, [Tokenized(CLEAN)], (71, 3))
    ours_ = dict(zip(found.components, found.values[0], strict=True))
    theirs_ = dict(zip(labels, expected.tolist(), strict=True))
    for layer in range(3):
        for part in ("attn_out", "mlp_out"):
            same(ours_[f"{part}@{layer}"], torch.tensor(theirs_[f"{layer}_{part}"]))
    # Theirs are the token's and the position's, ours what reaches the first block.
    embedded = sum(v for k, v in theirs_.items() if "embed" in k)
    same(ours_["embedding"], torch.tensor(embedded))


def test_heads_add_up_under_every_norm(hooked):
    for heads in (False, True):
        found = direct_logit_attribution(
            hooked, [Tokenized(CLEAN), Tokenized(CORRUPTED[:4])], (71, 3), heads=heads
        )
        assert found.error < 1e-5


def test_a_bridge_gives_the_map_of_the_network_it_wraps():
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(7)
        config = LlamaConfig(
            vocab_size=100,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.2,
        )
        network = LlamaForCausalLM(config).eval()
    plain = ours(activation_patching, sk.wrap(network), streams=("resid_mid", "heads"))
    bridge = build_bridge_from_module(
        network, architecture="LlamaForCausalLM", hf_config=network.config, tokenizer=None
    )
    bridged = ours(activation_patching, sk.wrap(bridge), streams=("resid_mid", "heads"))
    np.testing.assert_allclose(bridged.raw, plain.raw, rtol=1e-4, atol=1e-5)

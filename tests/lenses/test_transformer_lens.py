"""Maps of TransformerLens models, and equality with the library's own patching."""

from typing import Any

import numpy as np
import pytest
import torch

import steerkit as sk
from steerkit.batch import Tokenized
from steerkit.lenses import activation_patching, attribution_patching

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

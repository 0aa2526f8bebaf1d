"""Discovery by the additive identity: what it finds, and what it refuses."""

import pytest
import torch
from torch import nn

import steerkit as sk
from steerkit.errors import HookError, ModelError
from steerkit.models.blocks import identity_holds


def contributions(network):
    """Names of the modules that were found to write to the stream, one pair a block."""
    found = []
    for block in sk.wrap(network).engine.blocks:
        names = {id(m): name for name, m in block.module.named_modules()}
        found.append((names[id(block.attn)], names[id(block.mlp)]))
    return set(found)


@pytest.mark.parametrize(
    ("family_name", "expected"),
    [
        ("llama", ("self_attn", "mlp")),
        ("gpt2", ("attn", "mlp")),
        ("gpt_neox", ("attention", "mlp")),
        ("gemma2", ("post_attention_layernorm", "post_feedforward_layernorm")),
        ("gemma3_text", ("post_attention_layernorm", "post_feedforward_layernorm")),
        ("olmo2", ("post_attention_layernorm", "post_feedforward_layernorm")),
        ("bloom", ("self_attention.dense", "mlp.dense_4h_to_h")),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_writers_of_each_kind_of_block(make_network, family_name, expected, dtype):
    assert contributions(make_network(family_name).to(dtype)) == {expected}


def test_small_contributions_to_a_large_stream_are_told_apart_in_half_precision(make_network):
    """Under a stream a hundred times larger, rounding would let many a pair pass."""
    network = make_network("llama")
    with torch.no_grad():
        network.model.embed_tokens.weight *= 100
    assert contributions(network.to(torch.bfloat16)) == {("self_attn", "mlp")}


def test_module_outputs_of_post_norm_blocks_miss_the_identity(make_network, batch):
    """Why attn_out is not simply the attention's output there."""
    network = make_network("gemma2")
    model = sk.wrap(network)
    got = {}
    block = network.model.layers[1]
    handles = [
        module.register_forward_hook(
            lambda m, a, out, name=name: got.update(
                {name: out[0] if isinstance(out, tuple) else out}
            )
        )
        for name, module in (("attn", block.self_attn), ("mlp", block.mlp))
    ]
    sites = [sk.Site(1, "resid_pre"), sk.Site(1)]
    streams = model.run(batch, sites=sites).streams
    for handle in handles:
        handle.remove()
    gap = streams[sites[1]] - streams[sites[0]] - got["attn"] - got["mlp"]
    assert gap.norm(dim=-1).mean() > 0.5


def test_a_block_shared_by_several_layers_is_refused(make_network):
    network = make_network("llama")
    network.model.layers[2] = network.model.layers[0]
    with pytest.raises(HookError, match="runs one block at several layers"):
        sk.wrap(network)


def test_a_network_that_runs_a_block_twice_or_not_at_all_is_refused(make_network):
    network = make_network("llama")
    first, last = network.model.layers[0], network.model.layers[2]
    first.forward = lambda x, **kwargs: last(x, **kwargs)
    with pytest.raises(HookError, match=r"block 2 .* ran 2 times in one forward pass"):
        sk.wrap(network)
    network = make_network("llama")
    network.model.layers[1].__class__ = type(
        "Skipping", (nn.Identity,), {"__call__": lambda self, x, **kwargs: x}
    )
    with pytest.raises(HookError, match=r"block 1 \(Skipping\) ran 0 times"):
        sk.wrap(network)


def test_a_network_whose_blocks_ignore_their_input_is_refused(make_network):
    network = make_network("llama")
    constant = torch.randn(1, 1, 32)
    for layer in network.model.layers:
        layer.forward = lambda x, **kwargs: constant.expand_as(x).clone()
    with pytest.raises(ModelError, match="writing resid_pre@0 does not move the block's output"):
        sk.wrap(network)


def test_weights_that_give_nan_are_named(make_network):
    network = make_network("llama")
    with torch.no_grad():
        network.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"block 1 .* gives NaN or infinite activations"):
        sk.wrap(network)


def test_what_is_no_decoder_only_language_model_is_refused(make_network):
    import transformers

    tiny = {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    with pytest.raises(ModelError, match="is an encoder-decoder; only decoder-only"):
        sk.wrap(transformers.T5ForConditionalGeneration(transformers.T5Config(**tiny)))
    with pytest.raises(ModelError, match="LlamaModel has no language-model head"):
        sk.wrap(make_network("llama").model)
    with pytest.raises(ModelError, match="has weights on the meta device"):
        sk.wrap(make_network("llama").to("meta"))
    odd = make_network("llama")
    odd.config.num_hidden_layers = 7
    with pytest.raises(ModelError, match="has no list of 7 blocks"):
        sk.wrap(odd)


def test_the_identity_is_judged_in_the_dtype_of_the_stream():
    start, part = torch.randn(4, 8), torch.randn(4, 8)
    assert identity_holds(start, (part,), start + part)
    assert not identity_holds(start, (part,), start + part * 1.0001)
    half = (start + part).to(torch.bfloat16)
    assert identity_holds(start.to(torch.bfloat16), (part.to(torch.bfloat16),), half)

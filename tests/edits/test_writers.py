"""Writers are found by gradients; checked against what each architecture is known to have."""

import pytest
import torch
from torch import nn

import steerkit as sk
from steerkit.edits.writers import find_writers
from steerkit.errors import InterventionError

BLOCKS = {
    "llama": {"self_attn.o_proj.weight": 0, "mlp.down_proj.weight": 0},
    "qwen2": {"self_attn.o_proj.weight": 0, "mlp.down_proj.weight": 0},
    "mixtral": {"self_attn.o_proj.weight": 0, "mlp.experts.down_proj": 1},
    "gpt_neox": {
        "attention.dense.weight": 0,
        "attention.dense.bias": 0,
        "mlp.dense_4h_to_h.weight": 0,
        "mlp.dense_4h_to_h.bias": 0,
    },
    "phi": {
        "self_attn.dense.weight": 0,
        "self_attn.dense.bias": 0,
        "mlp.fc2.weight": 0,
        "mlp.fc2.bias": 0,
    },
    # Conv1D stores [in out]; c_proj of the attention is square, so only its use tells its axes.
    "gpt2": {
        "attn.c_proj.weight": 1,
        "attn.c_proj.bias": 0,
        "mlp.c_proj.weight": 1,
        "mlp.c_proj.bias": 0,
    },
    # Its blocks add one contribution to the other in place.
    "falcon": {"self_attention.dense.weight": 0, "mlp.dense_4h_to_h.weight": 0},
    "granite": {"self_attn.o_proj.weight": 0, "mlp.down_proj.weight": 0},
}
EMBEDDINGS = {
    "gpt2": {"transformer.wte.weight": 1, "transformer.wpe.weight": 1},
    "gpt_neox": {"gpt_neox.embed_in.weight": 1},
    "falcon": {"transformer.word_embeddings.weight": 1},
}
PREFIX = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers", "falcon": "transformer.h"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", BLOCKS)
def test_the_writers_of_each_architecture(tiny, family, dtype):
    model = tiny(family, dtype)
    before = {n: p.requires_grad for n, p in model.network.named_parameters()}
    found = {w.name: w.axis for w in find_writers(model)}
    prefix = PREFIX.get(family, "model.layers")
    expected = dict(EMBEDDINGS.get(family, {"model.embed_tokens.weight": 1}))
    for layer in range(3):
        expected |= {f"{prefix}.{layer}.{name}": axis for name, axis in BLOCKS[family].items()}
    assert found == expected
    assert all(p.grad is None for p in model.network.parameters())
    assert {n: p.requires_grad for n, p in model.network.named_parameters()} == before


def test_frozen_parameters_stay_frozen_and_autograd_modes_do_not_matter(tiny):
    model = tiny("llama")
    model.network.requires_grad_(False)
    with torch.no_grad():
        found = find_writers(model)
    assert len(found) == 7
    assert not any(p.requires_grad for p in model.network.parameters())


def test_an_expert_that_no_token_reached_is_found_by_its_siblings(tiny):
    class Experts(nn.Module):
        """Two experts, of which the second is used for one token id in a thousand only."""

        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))

        def forward(self, x):
            return self.experts[0](x) if x.abs().max() < 1e6 else self.experts[1](x)

    model = tiny("llama")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for layer in model.network.model.layers:
            layer.mlp = Experts()
    names = {w.name for w in find_writers(sk.wrap(model.network))}
    for layer in range(3):
        for expert in range(2):
            for part in ("weight", "bias"):
                assert f"model.layers.{layer}.mlp.experts.{expert}.{part}" in names


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("gemma2", "attn_out@0 is written directly by no parameter.*post-norm.*approximate=True"),
        ("gemma3_text", "post-norm"),
        ("olmo2", "post-norm"),
        ("bloom", r"resid_pre@0 is written directly by transformer.word_embeddings_layernorm.bias"),
        ("opt", "do not expose attn_out and mlp_out"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_no_edit_can_do_exactly_is_refused(tiny, family, message, dtype):
    with pytest.raises(InterventionError, match=message):
        find_writers(tiny(family, dtype))


def test_a_fixed_table_in_the_stream_is_noticed(tiny):
    """A buffer that is added to the attention's output is no parameter that could be edited."""
    network = tiny("llama").network
    plain = network.model.layers[1].self_attn.o_proj.forward
    constant = torch.randn(32, generator=torch.Generator().manual_seed(0))
    network.model.layers[1].self_attn.o_proj.forward = lambda x: plain(x) + constant
    with pytest.raises(InterventionError, match=r"attn_out@1 .* a fixed table"):
        find_writers(sk.wrap(network))


@pytest.mark.parametrize("family", ["gemma2", "olmo2"])
def test_through_norms_the_projections_are_named(tiny, family):
    found = [w for w in find_writers(tiny(family), through_norms=True) if w.norm]
    assert [(w.name, w.norm) for w in found[:2]] == [
        ("model.layers.0.self_attn.o_proj.weight", "model.layers.0.post_attention_layernorm"),
        ("model.layers.0.mlp.down_proj.weight", "model.layers.0.post_feedforward_layernorm"),
    ]
    assert len(found) == 6

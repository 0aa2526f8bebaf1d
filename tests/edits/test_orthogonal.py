"""The edited model is the twin of run-time ablation, or there is none."""

import pytest
import torch

import steerkit as sk
from steerkit.edits import EditReceipt, orthogonalize, undo
from steerkit.edits.twin import check_streams
from steerkit.edits.writers import contributions, probe_batch
from steerkit.errors import DirectionError, InterventionError, ModelError, OutputError
from steerkit.site import sites_of

EXACT = (
    "llama",
    "qwen2",
    "gpt2",
    "mixtral",
    "qwen3_moe",
    "gpt_neox",
    "phi",
    "falcon",
    "cohere",
    "granite",
)
TIED = ("gpt2", "falcon", "cohere")
POST_NORM = ("gemma2", "gemma3_text", "olmo2")


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("family", EXACT)
def test_the_edited_model_is_the_twin_of_run_time_ablation(
    tiny, directions, batch, relative, bits, family, k
):
    model = tiny(family)
    before, chosen = bits(model), directions(model, k)
    edited, receipt = orthogonalize(model, chosen)
    real = batch.mask
    ablated = model.with_(sk.Ablate(chosen, sites=contributions(model))).run(batch).logits[real]
    found = edited.run(batch).logits[real]
    assert relative(found, ablated) < 1e-5
    assert relative(model.run(batch).logits[real], ablated) > 0.1, "the directions matter"
    assert receipt.exact and receipt.error.largest < 1e-5 < receipt.error.unedited
    assert receipt.rank == k and (len(receipt.untied) == 1) == (family in TIED)
    streams = edited.run(batch, sites=sites_of(None, edited.info.streams, 3)).streams
    for stream in streams.values():
        for d in chosen:
            size = stream[real].norm(dim=-1).max()
            assert float(d.project(stream)[real].abs().max() / size) < 1e-5
    assert bits(model) == before, "the given model is untouched"


def test_experts_stored_in_out_with_biases(directions):
    """GPT-OSS keeps its experts `[expert in out]` and their biases `[expert out]`."""
    import transformers

    config = transformers.GptOssConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        sliding_window=4,
        initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = transformers.GptOssForCausalLM(config).eval()
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.data.normal_(std=0.2)
    model = sk.wrap(network, name="tiny-gpt-oss")
    receipt = orthogonalize(model, directions(model, 2)).receipt
    axes = {e.writer.name: e.writer.axis for e in receipt.edits if e.part == "experts"}
    for layer in range(2):
        # Square here: only what it does tells a down projection's axes apart.
        assert axes.pop(f"model.layers.{layer}.mlp.experts.down_proj") == 2
        assert axes.pop(f"model.layers.{layer}.mlp.experts.down_proj_bias") == 1
    assert not axes and receipt.exact and receipt.error.largest < 1e-5


def test_ablating_the_residual_streams_is_the_same_edit(tiny, directions, batch, relative):
    """Where every part of the stream lacks the direction, so does the stream, and vice versa."""
    model = tiny("qwen2")
    chosen = directions(model, 2)
    edited, _ = orthogonalize(model, chosen)
    streams = sites_of(None, ("resid_pre", "resid_mid", "resid_post"), 3)
    view = model.with_(sk.Ablate(chosen, sites=streams))
    real = batch.mask
    assert relative(edited.run(batch).logits[real], view.run(batch).logits[real]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_other_dtypes(tiny, directions, family, dtype):
    if family == "mixtral" and dtype == torch.float64:
        pytest.skip("torch has no grouped matrix product in float64")
    model = tiny(family, dtype)
    edited, receipt = orthogonalize(model, directions(model))
    assert edited.info.dtype == str(dtype).removeprefix("torch.")
    # Half precision: as far as its rounding takes the two apart, and no direction is left.
    bound = {torch.float64: 1e-6, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
    assert receipt.error.median < bound < receipt.error.unedited
    assert receipt.leak < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("family", POST_NORM)
def test_post_norm_blocks_are_refused_or_marked(tiny, directions, batch, family):
    model = tiny(family)
    chosen = directions(model, 2)
    with pytest.raises(InterventionError, match=r"post-norm.*approximate=True"):
        orthogonalize(model, chosen)
    edited, receipt = orthogonalize(model, chosen, approximate=True)
    assert not receipt.exact and "approximate" in str(receipt)
    # It is an error, it is measured, and it is far smaller than doing nothing.
    assert 1e-3 < receipt.error.median < receipt.error.unedited / 5
    for stream in edited.run(batch, sites=contributions(edited)).streams.values():
        for d in chosen:
            leak = d.project(stream)[batch.mask].abs().max() / stream[batch.mask].norm(dim=-1).max()
            assert float(leak) < 1e-6


def test_the_error_before_a_post_norm_is_one_scale_a_token(tiny, directions):
    """Of the first block's attention only the size differs from ablation, not the direction."""
    model = tiny("gemma2")
    d = directions(model)[0]
    edited, _ = orthogonalize(model, d, approximate=True)
    batch = probe_batch(model, 5)
    # The block's input already lacks the direction in the edited model, so ablate it here too.
    site = sk.Site(0, "attn_out")
    view = model.with_(sk.Ablate(d, sites=["resid_pre@0", site]))
    wanted = view.run(batch, sites=[site]).streams[site].double()
    found = edited.run(batch, sites=[site]).streams[site].double()
    cosine = torch.nn.functional.cosine_similarity(found, wanted, dim=-1)
    assert float(cosine.min()) > 1 - 1e-10
    assert float((found.norm(dim=-1) / wanted.norm(dim=-1) - 1).abs().max()) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gemma2"])
def test_undo_restores_every_bit_and_the_tie(tiny, directions, bits, tmp_path, family, dtype):
    model = tiny(family, dtype)
    edited, receipt = orthogonalize(model, directions(model, 2), approximate=True)
    after = bits(edited)
    restored = undo(edited, EditReceipt.load(receipt.save(tmp_path / "receipt.safetensors")))
    assert bits(restored) == bits(model)
    assert restored.info.fingerprint == model.info.fingerprint
    assert restored.network.config.to_dict() == model.network.config.to_dict()
    head, embedding = (
        f().weight
        for f in (restored.network.get_output_embeddings, restored.network.get_input_embeddings)
    )
    assert (head is embedding) == (family in (*TIED, "gemma2"))
    assert bits(edited) == after, "undo makes a new model, too"


def test_undo_refuses_another_model_and_one_that_changed(tiny, directions):
    model = tiny("llama")
    edited, receipt = orthogonalize(model, directions(model))
    with pytest.raises(OutputError, match=r"is not what this edit .* made: .* has other values"):
        undo(model, receipt)
    with torch.no_grad():
        edited.network.model.layers[2].mlp.down_proj.weight[3, 3] += 1
    with pytest.raises(OutputError, match=r"layers.2.mlp.down_proj.weight has other values"):
        undo(edited, receipt)


def test_untying_leaves_the_unembedding_as_it_was(tiny, directions):
    model = tiny("gpt2")
    edited, receipt = orthogonalize(model, directions(model))
    assert receipt.untied == ("lm_head.weight",)
    assert not edited.network.config.tie_word_embeddings
    assert model.network.config.tie_word_embeddings
    assert torch.equal(edited.network.lm_head.weight, model.network.lm_head.weight)
    assert not torch.equal(edited.network.transformer.wte.weight, edited.network.lm_head.weight)


def test_position_embeddings_and_biases_are_part_of_the_twin(tiny, directions, batch, relative):
    """Leaving any of them out is the mistake that the twin check is there for."""
    model = tiny("gpt2")
    chosen = directions(model)
    edited, receipt = orthogonalize(model, chosen)
    original = dict(model.network.named_parameters())
    real = batch.mask
    wanted = edited.run(batch).logits[real]
    for name in ("transformer.wpe.weight", "transformer.h.1.mlp.c_proj.bias"):
        parameter = edited.network.get_parameter(name)
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.copy_(original[name])
        assert relative(edited.run(batch).logits[real], wanted) > 1e-3
        with pytest.raises(ModelError, match="something writes the stream that was not edited"):
            check_streams(edited, receipt.bases[""].reads, [batch])
        with torch.no_grad():
            parameter.copy_(kept)


def test_a_weight_that_is_read_elsewhere_too_fails_the_twin(tiny, directions):
    """Here the unembedding adds what the embedding says: editing that edits the logits."""
    network = tiny("llama").network

    class Head(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) + x @ self.other[0].weight.mT

    new = Head(32, 100, bias=False)
    new.other = [network.model.embed_tokens]
    new.weight = network.lm_head.weight
    network.lm_head = new
    model = sk.wrap(network, name="reads-twice")
    with pytest.raises(ModelError, match=r"not the twin .* read elsewhere too"):
        orthogonalize(model, directions(model))


def test_prompts_of_ones_own_and_a_tokenizer(tiny_model, directions):
    edited, receipt = orthogonalize(
        tiny_model, directions(tiny_model), prompts=["the cat was happy", "tell me a story"]
    )
    assert receipt.error.prompts == "given" and receipt.error.largest < 1e-5
    assert edited.tokenizer is tiny_model.tokenizer
    ablated = tiny_model.with_(sk.Ablate(directions(tiny_model), sites=contributions(tiny_model)))
    asked = ["please write a song", "how to make a cake ?"]
    assert [c.tokens for c in edited.generate(asked)] == [c.tokens for c in ablated.generate(asked)]


def test_what_cannot_be_edited_says_so(tiny, directions):
    model = tiny("llama")
    d = directions(model)[0]
    with pytest.raises(InterventionError, match=r"a steered view; give model\.plain"):
        orthogonalize(model.with_(sk.Ablate(d)), d)
    with model.with_(sk.Ablate(d)).as_hf():
        with pytest.raises(InterventionError, match="being steered or captured right now"):
            orthogonalize(model, d)
    with pytest.raises(InterventionError, match="linearly dependent"):
        orthogonalize(model, [d, -d])
    with pytest.raises(InterventionError, match="made by load or wrap; got a LlamaForCausalLM"):
        orthogonalize(model.network, d)
    other = tiny("llama", tie_word_embeddings=True)
    with pytest.raises(DirectionError, match="was taken on"):
        orthogonalize(other, d)
    assert orthogonalize(other, d, force=True).receipt.untied == ("lm_head.weight",)


def test_other_shared_weights_are_refused(tiny, directions):
    network = tiny("llama").network
    blocks = network.model.layers
    own = blocks[2].mlp.down_proj.weight
    blocks[2].mlp.down_proj.weight = blocks[0].mlp.down_proj.weight
    model = sk.wrap(network, name="shares")
    with pytest.raises(InterventionError, match=r"mlp_out@2 .* shared weights"):
        orthogonalize(model, directions(model))
    blocks[2].mlp.down_proj.weight = own
    network.probe = torch.nn.Linear(48, 32, bias=False)
    network.probe.weight = own
    model = sk.wrap(network, name="shares")
    message = r"layers.2.mlp.down_proj.weight and probe.weight of LlamaForCausalLM are one tensor"
    with pytest.raises(InterventionError, match=message):
        orthogonalize(model, directions(model))


def test_a_direction_does_not_fit_the_edited_model_any_more(tiny, directions):
    model = tiny("llama")
    d = directions(model)[0]
    edited, receipt = orthogonalize(model, d)
    assert receipt.edited.fingerprint == edited.info.fingerprint != model.info.fingerprint
    with pytest.raises(DirectionError):
        edited.with_(sk.Ablate(d))

"""The Hugging Face engine: traps that other tools fell into, and unusual networks."""

import pytest
import torch
from torch import nn

import steerkit as sk
from steerkit.batch import Batch, Tokenized
from steerkit.errors import HookError, ModelError, PromptError
from steerkit.site import STREAMS, Site


def test_position_ids_are_given_where_their_absence_would_move_the_logits(
    make_network, batch, alone, relative
):
    """GPT-2 with a mask but without position ids is wrong under left padding; ours is not."""
    network = make_network("gpt2")
    model = sk.wrap(network)
    single = model.run(alone(1)).logits[0]
    with torch.no_grad():
        bare = network(input_ids=batch.tokens, attention_mask=batch.mask.long()).logits[1, -3:]
    assert relative(bare, single) > 0.1
    assert relative(model.run(batch).logits[1, -3:], single) < 1e-5


def test_the_attention_implementation_is_left_alone(make_network):
    for kind in ("eager", "sdpa"):
        network = make_network("llama")
        network.set_attn_implementation(kind)
        model = sk.wrap(network)
        model.run(Batch.collate([Tokenized((5, 6, 7))], pad_id=0), sites=[Site(1)])
        assert network.config._attn_implementation == kind


def test_blocks_that_return_tuples_are_steered_and_read(make_network, batch, direction, relative):
    """Older networks return (stream, ...) from a block."""
    network = make_network("llama")
    plain = sk.wrap(network)
    expected = plain.with_(sk.Add(direction(plain.info, 1))).run(batch, sites=[Site(1)])
    for layer in network.model.layers:
        layer.forward = lambda x, inner=layer.forward, **kwargs: (inner(x, **kwargs), "extra")

    class Unpacking(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, x, **kwargs):
            out, extra = self.block(x, **kwargs)
            assert extra == "extra"
            return out

    tuples = list(network.model.layers)
    network.model.layers = nn.ModuleList(Unpacking(block) for block in tuples)
    model = sk.wrap(network)
    from dataclasses import replace as changed

    model.engine.blocks = tuple(
        changed(found, module=block)
        for found, block in zip(model.engine.blocks, tuples, strict=True)
    )
    found = model.with_(sk.Add(direction(model.info, 1))).run(batch, sites=[Site(1)])
    assert relative(found.streams[Site(1)][batch.mask], expected.streams[Site(1)][batch.mask]) == 0
    assert torch.equal(found.logits, expected.logits)


def test_half_precision_networks_are_steered_in_their_own_dtype(make_network, batch, direction):
    network = make_network("llama").to(torch.bfloat16)
    model = sk.wrap(network)
    assert model.info.streams == STREAMS and model.info.dtype == "bfloat16"
    view = model.with_rows([sk.Add(direction(model.info, 1, "resid_mid"), strength=2.0)])
    mixed = view.run(batch, sites=[Site(1)], slots=[0, 1, 0])
    plain = model.run(batch, sites=[Site(1)])
    assert mixed.streams[Site(1)].dtype == torch.bfloat16 and mixed.logits.dtype == torch.float32
    assert torch.equal(mixed.logits[0], plain.logits[0])
    assert not torch.equal(mixed.logits[1], plain.logits[1])


def test_generation_settings_of_the_checkpoint_do_not_leak_in(tiny_folder):
    """Greedy means greedy, also for checkpoints that ask for sampling and penalties."""
    model = sk.load(tiny_folder)
    expected = [c.tokens for c in model.generate(["the cat", "a dog was"], max_new_tokens=8)]
    settings = model.network.generation_config
    settings.do_sample, settings.temperature, settings.top_k = True, 3.0, 5
    settings.repetition_penalty, settings.no_repeat_ngram_size, settings.num_beams = 5.0, 1, 2
    again = [c.tokens for c in model.generate(["the cat", "a dog was"], max_new_tokens=8)]
    assert again == expected


def test_a_multimodal_wrapper_is_read_in_its_language_model(batch, relative):
    """Gemma 3 as shipped has a vision tower with blocks of its own."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=99
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Gemma3ForConditionalGeneration(config).eval()
    model = sk.wrap(network)
    assert model.info.streams == STREAMS and model.info.d_model == 32
    found = model.run(batch, sites=[Site(1)])
    with torch.no_grad():
        states = network(
            input_ids=batch.tokens,
            attention_mask=batch.mask.long(),
            position_ids=batch.position_ids,
            output_hidden_states=True,
        ).hidden_states
    assert relative(found.streams[Site(1)][batch.mask], states[2][batch.mask]) < 1e-5


class Adapter(nn.Module):
    """A wrapper in the manner of adapter libraries: `**kwargs` on to a base model."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def get_base_model(self):
        return self.base

    def forward(self, *args, **kwargs):
        return self.base(*args, **kwargs)


def test_adapters_are_wrapped_with_positions_and_masks(make_network, batch):
    expected = sk.wrap(make_network("gpt2")).run(batch, logits="answer").logits
    found = sk.wrap(Adapter(make_network("gpt2"))).run(batch, logits="answer").logits
    torch.testing.assert_close(found, expected)


def test_a_compiled_network_is_run_as_it_is_or_refused(make_network, batch, direction, relative):
    """Hooks added after compilation can be ignored without a word; then we say so."""
    network = make_network("llama")
    expected = sk.wrap(network)
    steered = expected.with_(sk.Add(direction(expected.info, 1), strength=2.0)).run(batch).logits
    model = sk.wrap(torch.compile(network, backend="eager"))
    assert model.network is network
    found = model.with_(sk.Add(direction(model.info, 1), strength=2.0)).run(batch).logits
    assert relative(found[batch.mask], steered[batch.mask]) < 1e-6
    view = model.with_(sk.Add(direction(model.info, 1)))
    network.model.layers[1].compile(backend="eager")
    for call in (
        lambda: view.run(batch),
        lambda: view.as_hf().__enter__(),
        lambda: sk.wrap(network),
    ):
        with pytest.raises(ModelError, match=r"'model.layers.1' was compiled in place"):
            call()


def long_rope(make_network, boundary=16):
    half = 4
    return make_network(
        "phi3",
        max_position_embeddings=64,
        original_max_position_embeddings=boundary,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * half,
            "long_factor": [4.0] * half,
            "original_max_position_embeddings": boundary,
        },
    )


def test_long_rope_texts_are_batched_within_one_regime(make_network, tiny_folder, relative):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    model = sk.wrap(long_rope(make_network), tokenizer)
    prompts = [sk.Prompt(text, template="raw") for text in ("a dog", "the cat " * 10, "you")]
    with pytest.raises(PromptError, match=r"below and above 16 tokens cannot share a batch"):
        model.encode(prompts)
    batches = model.batches(prompts)
    assert sorted(tuple(sorted(b.rows.tolist())) for b in batches) == [(0, 2), (1,)]
    for b in batches:
        logits = model.run(b).logits
        for i, row in enumerate(b.rows.tolist()):
            single = model.run(model.encode([prompts[row]])).logits[0]
            assert relative(logits[i, -len(single) :], single) < 1e-5
    with pytest.raises(PromptError, match=r"cross the length of 16 .* generate at most 13"):
        model.generate(prompts, max_new_tokens=20)
    assert len(model.generate(prompts, max_new_tokens=4)) == 3


def test_a_network_run_by_others_without_tokens_is_refused(make_network, direction):
    model = sk.wrap(make_network("llama"))
    with (
        model.with_(sk.Add(direction(model.info, 1))).as_hf() as hf,
        pytest.raises(HookError, match="ran without input_ids or inputs_embeds"),
    ):
        hf.model(attention_mask=torch.ones(1, 2))

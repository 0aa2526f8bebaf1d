"""Every family: its streams are what they should be, alone and in any batch."""

from dataclasses import replace

import pytest
import torch

import steerkit as sk
from steerkit.batch import Batch, Tokenized
from steerkit.site import STREAMS, Site, sites_of

PARALLEL = ("gpt_neox", "phi", "falcon", "gptj", "cohere")
TL_DIFFERS = {
    "cohere": "TransformerLens 3.9 rotates Cohere's queries in another order than transformers",
}


def test_the_streams_that_each_family_has(family, model):
    if family == "opt":
        assert model.info.streams == ("resid_pre", "resid_post")
    elif family in PARALLEL:
        assert model.info.streams == ("resid_pre", "attn_out", "mlp_out", "resid_post")
    else:
        assert model.info.streams == STREAMS


def test_streams_satisfy_the_additive_identity_and_chain(family, model, batch, relative):
    found = model.run(batch, sites=sites_of(None, model.info.streams, 3), logits="none").streams
    for layer in range(3):
        if layer:
            assert torch.equal(found[Site(layer, "resid_pre")], found[Site(layer - 1)])
        if "attn_out" not in model.info.streams:
            continue
        parts = [found[Site(layer, s)] for s in ("resid_pre", "attn_out", "mlp_out")]
        post = found[Site(layer)]
        assert relative(sum(parts), post) < 1e-6
        if "resid_mid" in model.info.streams:
            assert relative(parts[0] + parts[1], found[Site(layer, "resid_mid")]) < 1e-6


def test_resid_equals_hidden_states_except_the_last_which_is_normed(family, model, batch):
    """`hidden_states[-1]` comes after the final norm: a trap for whoever reads it."""
    found = model.run(batch, sites=sites_of(None, ("resid_pre", "resid_post"), 3)).streams
    with torch.no_grad():
        states = model.network(
            input_ids=batch.tokens,
            attention_mask=batch.mask.long(),
            **({"position_ids": batch.position_ids} if family not in ("bloom",) else {}),
            output_hidden_states=True,
        ).hidden_states
    real = batch.mask
    for layer in range(3):
        torch.testing.assert_close(found[Site(layer, "resid_pre")][real], states[layer][real])
    assert not torch.allclose(found[Site(2)][real], states[3][real], atol=1e-2)


def test_a_prompt_gives_the_same_streams_alone_and_in_a_batch(
    family, model, batch, alone, relative
):
    sites = sites_of(None, model.info.streams, 3)
    together = model.run(batch, sites=sites)
    for row in range(3):
        single = model.run(alone(row), sites=sites)
        width = single.logits.shape[1]
        assert relative(together.logits[row, -width:], single.logits[0]) < 1e-5
        for site in sites:
            expected = single.streams[site][0]
            assert relative(together.streams[site][row, -width:], expected) < 1e-5


def test_logits_are_those_of_the_network_itself(family, model, alone):
    batch = alone(0)
    with torch.no_grad():
        expected = model.network(input_ids=batch.tokens).logits
    torch.testing.assert_close(model.run(batch).logits, expected, rtol=1e-5, atol=1e-5)
    last = model.run(batch, logits="last").logits
    answer = model.run(batch, logits="answer").logits
    torch.testing.assert_close(last, expected[:, -1:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(answer, expected[:, -3:], rtol=1e-5, atol=1e-5)


def test_writing_a_stream_moves_everything_downstream(family, model, batch, direction, relative):
    """The delta reaches the block's output whole, and through the MLP where that is downstream."""
    for stream in model.info.streams:
        d = direction(model.info, 1, stream)
        plain, steered = (
            m.run(batch, sites=sites_of((1,), model.info.streams, 3)).streams
            for m in (model, model.with_(sk.Add(d, strength=1.0)))
        )
        real = batch.mask
        delta = {s: (steered[s] - plain[s])[real] for s in plain}
        written = d.vector.expand_as(delta[Site(1, stream)])
        assert relative(delta[Site(1, stream)], written) < 1e-4
        order = Site(1, stream).order
        for site, change in delta.items():
            if site.order < order:
                assert not change.any()
        if stream != "resid_pre" and "attn_out" in model.info.streams:
            mlp = Site(1, "mlp_out")
            inner = delta[mlp] if stream != "mlp_out" else torch.zeros_like(written)
            if stream == "resid_post":
                inner = torch.zeros_like(written)
            assert relative(delta[Site(1)], written + inner) < 1e-4
            if stream in ("attn_out", "resid_mid"):
                assert inner.any() == (family not in PARALLEL)


@pytest.mark.parametrize("rule", ["prompt", "last_prompt", "generated"])
def test_cached_and_chunked_passes_are_steered_alike(
    family, model, batch, direction, relative, fed, rule
):
    streams = [s for s in ("resid_pre", "resid_mid", "mlp_out") if s in model.info.streams]
    steered = model.with_(
        *(
            sk.Add(direction(model.info, layer, stream), strength=1.5, positions=rule)
            for layer, stream in enumerate(streams)
        )
    )
    whole, real = steered.run(batch).logits, batch.mask
    assert not torch.allclose(whole[real], model.run(batch).logits[real], atol=1e-3)
    prefill = batch.width - batch.answer_width
    for chunks in ([prefill, *[1] * batch.answer_width], [4, batch.width - 4]):
        assert relative(fed(steered, batch, chunks)[real], whole[real]) < 1e-5


def test_generation_is_what_uncached_runs_predict(family, model, batch, direction):
    steered = model.with_(sk.Add(direction(model.info, 1), strength=1.5, positions="generated"))
    prompts = replace(batch, prompt_len=batch.mask.sum(1))
    settings = {"max_new_tokens": 5, "temperature": 0.0, "seed": 0}
    answers = model.engine.complete(prompts, steered.table, [1, 0, 1], **settings)
    for row, (slot, tokens) in enumerate(zip([1, 0, 1], answers, strict=True)):
        prompt = tuple(batch.tokens[row][batch.mask[row]].tolist())
        forced = Batch.collate([Tokenized(prompt, tokens)], pad_id=0)
        logits = steered.run(forced, slots=[slot]).logits[0, len(prompt) - 1 : -1]
        for token, scores in zip(tokens, logits, strict=True):
            best = scores.topk(2)
            if best.values[0] - best.values[1] > 1e-4:
                assert token == best.indices[0]


def test_streams_equal_the_unprocessed_cache_of_transformer_lens(
    family, model, make_network, relative
):
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    if family in TL_DIFFERS:
        pytest.skip(TL_DIFFERS[family])
    network = make_network(family)
    bridge = build_bridge_from_module(
        network, architecture=type(network).__name__, hf_config=network.config, tokenizer=None
    )
    tokens = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(3))
    batch = Batch.collate([Tokenized(tuple(row)) for row in tokens.tolist()], pad_id=0)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(tokens)
    sites = sites_of(None, model.info.streams, 3)
    found = model.run(batch, sites=sites).streams
    for site in sites:
        assert relative(found[site], cache[f"blocks.{site.layer}.hook_{site.stream}"]) < 1e-5, site

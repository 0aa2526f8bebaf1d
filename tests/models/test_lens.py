"""TransformerLens models satisfy the same protocol, and are held to the same checks."""

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import steerkit as sk
from steerkit.batch import Batch, Tokenized
from steerkit.errors import DirectionError, ModelError, SiteError
from steerkit.interventions import When
from steerkit.protocols import Model
from steerkit.site import STREAMS, Site, sites_of

VARIANTS = {
    "sequential": {"positional_embedding_type": "standard", "normalization_type": "LN"},
    "rotary": {
        "positional_embedding_type": "rotary",
        "rotary_dim": 8,
        "normalization_type": "RMS",
        "gated_mlp": True,
    },
    "parallel": {
        "positional_embedding_type": "standard",
        "normalization_type": "LN",
        "parallel_attn_mlp": True,
    },
}


def hooked_transformer(variant="sequential"):
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
        return HookedTransformer(config).eval()


def bridge_of(network):
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    return build_bridge_from_module(
        network, architecture=type(network).__name__, hf_config=network.config, tokenizer=None
    )


@pytest.fixture(scope="module", params=VARIANTS)
def hooked(request):
    return sk.wrap(hooked_transformer(request.param))


@pytest.fixture(scope="module")
def bridged(make_network):
    return sk.wrap(bridge_of(make_network("llama")), name="tiny-llama")


def test_the_streams_are_its_own_cache(hooked, alone, relative):
    assert isinstance(hooked, Model)
    parallel = hooked.network.cfg.parallel_attn_mlp
    assert ("resid_mid" in hooked.info.streams) != parallel
    assert len(hooked.info.streams) == 5 - parallel
    sites = sites_of(None, hooked.info.streams, 3)
    batch = alone(0)
    found = hooked.run(batch, sites=sites)
    with torch.no_grad():
        logits, cache = hooked.network.run_with_cache(batch.tokens)
    torch.testing.assert_close(found.logits, logits)
    for site in sites:
        expected = cache[f"blocks.{site.layer}.hook_{site.stream}"]
        assert relative(found.streams[site], expected) < 1e-5


def test_a_prompt_gives_the_same_alone_and_in_a_batch(hooked, batch, alone, relative):
    sites = sites_of(None, hooked.info.streams, 3)
    together = hooked.run(batch, sites=sites)
    for row in range(3):
        single = hooked.run(alone(row), sites=sites)
        width = single.logits.shape[1]
        assert relative(together.logits[row, -width:], single.logits[0]) < 1e-5
        for site in sites:
            assert relative(together.streams[site][row, -width:], single.streams[site][0]) < 1e-5


def test_writing_a_stream_adds_up(hooked, batch, direction, relative):
    for stream in hooked.info.streams:
        d = direction(hooked.info, 1, stream)
        plain, steered = (
            m.run(batch, sites=sites_of((1,), hooked.info.streams, 3)).streams
            for m in (hooked, hooked.with_(sk.Add(d)))
        )
        real = batch.mask
        delta = {s: (steered[s] - plain[s])[real] for s in plain}
        written = d.vector.expand_as(delta[d.site])
        assert relative(delta[d.site], written) < 1e-4
        if stream in ("attn_out", "resid_mid"):
            total = written + delta[Site(1, "mlp_out")]
            assert relative(delta[Site(1)], total) < 1e-4


def test_generation_is_greedy_decoding_and_steered(hooked, batch, direction):
    steered = hooked.with_(sk.Add(direction(hooked.info, 1), strength=3.0, positions="generated"))
    prompts = Batch.collate([Tokenized((5, 17, 42)), Tokenized((9, 14, 77, 8, 2))], pad_id=0)

    class Ends:
        eos_token_id, pad_token_id, chat_template = 99, 0, None

    hooked.engine.text._tokenizer = Ends()
    new = steered.engine.complete(
        prompts, steered.table, [1, 0], max_new_tokens=4, temperature=0.0, seed=0
    )
    for row, slot in ((0, 1), (1, 0)):
        prompt = prompts.tokens[row][prompts.mask[row]].tolist()
        for step, token in enumerate(new[row]):
            item = Tokenized(tuple(prompt), new[row][:step])
            run = steered.run(Batch.collate([item], pad_id=0), slots=[slot], logits="last")
            assert int(run.logits[0, -1].argmax()) == token


def test_the_likeliest_token_alone_is_greedy(hooked):
    prompts = Batch.collate([Tokenized((5, 17, 42)), Tokenized((9, 14, 77))], pad_id=0)

    class Ends:
        eos_token_id, pad_token_id, chat_template = 99, 0, None

    hooked.engine.text._tokenizer = Ends()

    def said(**options):
        return hooked.engine.complete(prompts, None, [0, 0], max_new_tokens=4, **options)

    greedy = said(temperature=0.0, seed=0)
    assert said(temperature=1.0, seed=0, top_k=1) == greedy
    assert said(temperature=1.0, seed=0, top_p=1e-9) == greedy


def test_conditions_are_decided_by_the_prompt_at_every_step(hooked, batch, direction):
    read = direction(hooked.info, 0, seed=5)
    prompts = Batch.collate([Tokenized((5, 17, 42)), Tokenized((9, 14, 77, 8, 2))], pad_id=0)
    streams = hooked.run(prompts, sites=[read.site]).streams[read.site]
    cosines = streams[:, -1] @ read.unit / streams[:, -1].norm(dim=-1)
    condition = When(read, above=float(cosines.mean()))
    add = sk.Add(direction(hooked.info, 1), strength=3.0, positions="generated")
    gated, always = hooked.with_(add.when(condition)), hooked.with_(add)

    def answers(view, slots):
        settings = {"max_new_tokens": 4, "temperature": 0.0, "seed": 0}
        return view.engine.complete(prompts, view.table, slots, **settings)

    opened = (cosines >= condition.threshold).tolist()
    assert sorted(opened) == [False, True]
    assert answers(gated, [1, 1]) == answers(always, [int(o) for o in opened])


def test_a_bridge_is_the_network_it_wraps(bridged, llama, batch, direction, relative):
    """Same fingerprint, same streams: directions go to and fro."""
    assert bridged.info.fingerprint == llama.info.fingerprint
    assert bridged.info.processing == "raw"
    sites = sites_of(None, STREAMS, 3)
    d = direction(llama.info, 1, "resid_mid")
    for intervene in ((), (sk.Add(d),)):
        a, b = (m.with_(*intervene).run(batch, sites=sites) for m in (bridged, llama))
        real = batch.mask
        assert relative(a.logits[real], b.logits[real]) < 1e-5
        for site in sites:
            assert relative(a.streams[site][real], b.streams[site][real]) < 1e-5
    steered = bridged.with_(sk.Add(d))
    prompts = replace(batch, prompt_len=batch.mask.sum(1))
    settings = {"max_new_tokens": 5, "temperature": 0.0, "seed": 0}
    answers = (
        m.engine.complete(prompts, steered.table, [1, 0, 1], **settings) for m in (bridged, llama)
    )
    assert next(answers) == next(answers)
    with steered.as_hf() as hf, torch.no_grad():
        found = hf(
            input_ids=batch.tokens,
            attention_mask=batch.mask.long(),
            position_ids=batch.position_ids,
        ).logits
    assert relative(found[batch.mask], steered.run(batch).logits[batch.mask]) < 1e-5


def test_a_nonsense_site_raises_where_the_library_runs_unhooked(make_network, batch):
    bridge = bridge_of(make_network("llama"))
    called = []
    with torch.no_grad():
        bridge.run_with_hooks(
            batch.tokens, fwd_hooks=[("blocks.999.nonsense", lambda *a, **k: called.append(1))]
        )
    assert called == []
    with pytest.raises(SiteError, match="no resid_post@999"):
        sk.wrap(bridge).run(batch, sites=[Site(999)])


def test_processed_weights_are_another_model(make_network, direction):
    plain = sk.wrap(bridge_of(make_network("llama")))
    bridge = bridge_of(make_network("llama"))
    bridge.enable_compatibility_mode(disable_warnings=True)
    folded = sk.wrap(bridge)
    assert folded.info.processing == "folded"
    assert folded.info.fingerprint != plain.info.fingerprint
    with pytest.raises(DirectionError, match=r"the same weights under other processing"):
        folded.with_(sk.Add(direction(plain.info, 1)))


def test_processing_of_a_hooked_transformer_shows(make_network):
    network = hooked_transformer()
    raw = sk.wrap(network).info
    assert raw.processing == "raw"
    processed = copy.deepcopy(network)
    processed.load_and_process_state_dict(network.state_dict())
    info = sk.wrap(processed).info
    assert info.processing == "folded+centred"
    assert info.fingerprint != raw.fingerprint
    assert sk.wrap(hooked_transformer()).info.fingerprint == raw.fingerprint


def test_the_network_is_as_before(hooked, batch, direction):
    network = hooked.network
    points = [m for m in network.modules() if hasattr(m, "fwd_hooks")]
    before = {k: v.clone() for k, v in network.state_dict().items()}
    hooked.with_(sk.Add(direction(hooked.info, 1))).run(batch, sites=[Site(2)])
    with pytest.raises(ZeroDivisionError):
        hooked.run(batch, sites=[Site(1)], pool=lambda stream, given: 1 / 0)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not any(p.fwd_hooks or p._forward_hooks for p in points)


def test_a_hooked_transformer_has_no_hugging_face_object(hooked):
    with pytest.raises(ModelError, match="has no Hugging Face object to steer; load the same"):
        hooked.as_hf()


def test_read_out_is_the_linear_part_of_norm_and_head(hooked):
    vectors = torch.randn(4, 32, generator=torch.Generator().manual_seed(1)) * 50
    network = hooked.network
    with torch.no_grad():
        up, down = (network.unembed(network.ln_final(x[None]))[0] for x in (vectors, -vectors))
    found = torch.nn.functional.cosine_similarity(hooked.read_out(vectors), (up - down) / 2)
    assert found.min() > 0.99999


def test_other_transformer_lens_objects_are_refused():
    from transformer_lens.hook_points import HookPoint

    with pytest.raises(ModelError, match="cannot wrap TransformerLens' HookPoint; give a"):
        sk.wrap(HookPoint())


def test_wrapping_a_hugging_face_model_does_not_import_transformer_lens(tiny_folder):
    code = (
        "import sys, steerkit as sk; sk.load(sys.argv[1]); "
        "assert 'transformer_lens' not in sys.modules"
    )
    root = Path(sk.__file__).parent.parent
    subprocess.run([sys.executable, "-c", code, str(tiny_folder)], check=True, cwd=root)

"""Capture on a tiny random Llama, against plain Hugging Face hooks run a prompt at a time."""

import pytest
import torch

from steerkit.captures import Span, capture, open_capture
from steerkit.direction import Direction
from steerkit.errors import OutputError, PromptError, SiteError
from steerkit.interventions import Add
from steerkit.prompts import Prompt
from steerkit.site import Site

TEXTS = [
    "the cat is very happy",
    "rain",
    "please tell me how to make a cake and a song for the big red house by the river",
    "i loved the film",
    "the bird and the dog and the sun",
]
PROMPTS = [
    Prompt(t, answer=" the dog is good", template="chat" if i % 2 else "raw")
    for i, t in enumerate(TEXTS)
]


def quiet(model, prompts=PROMPTS, **options):
    return capture(model, prompts, progress=False, **options)


@pytest.fixture(scope="module")
def alone(tiny_model):
    """Streams `{site: [pos d_model]}` of each prompt, with neither padding nor our hooks."""
    network = tiny_model.network
    out = []
    for item in tiny_model.tokenize(PROMPTS):
        seen = {}
        handles = []
        for i, block in enumerate(network.model.layers):
            for stream, module in (
                ("resid_post", block),
                ("attn_out", block.self_attn),
                ("mlp_out", block.mlp),
            ):
                site = Site(i, stream)
                handles.append(
                    module.register_forward_hook(
                        lambda m, a, o, site=site, seen=seen: seen.__setitem__(
                            site, (o[0] if isinstance(o, tuple) else o)[0].clone()
                        )
                    )
                )
        try:
            with torch.no_grad():
                network(torch.tensor([item.prompt + item.answer]))
        finally:
            for handle in handles:
                handle.remove()
        out.append(seen)
    return out


def close(got, want):
    """1e-5 relative for each row."""
    assert ((got - want).norm(dim=-1) <= 1e-5 * want.norm(dim=-1)).all()


@pytest.mark.parametrize("budget", [1, 60, 4096])
@pytest.mark.parametrize(
    ("positions", "part"),
    [
        ("last", lambda h, n: h[n - 1 : n]),
        ("mean_prompt", lambda h, n: h[:n].mean(0, keepdim=True)),
        ("mean_answer", lambda h, n: h[n:].mean(0, keepdim=True)),
        (-2, lambda h, n: h[n - 2 : n - 1]),
        ("all", lambda h, n: h),
    ],
)
def test_capture_equals_plain_hooks_on_each_prompt_alone(
    tiny_model, alone, positions, part, budget
):
    acts = quiet(
        tiny_model,
        streams=("resid_post", "attn_out", "mlp_out"),
        positions=positions,
        token_budget=budget,
    )
    lengths = [len(item.prompt) for item in tiny_model.tokenize(PROMPTS)]
    for site in acts.sites:
        want = torch.cat([part(h[site], n) for h, n in zip(alone, lengths, strict=True)])
        close(acts.at(site), want)


def test_padding_ids_and_their_activations_never_matter(tiny_model):
    """With huge pad embeddings every row stays the same."""
    before = quiet(tiny_model, positions="mean_prompt", exclude_sinks=True)
    network = tiny_model.network
    pad = network.config.pad_token_id
    embed = network.model.embed_tokens

    def poisoned(module, args, out):
        return out.masked_fill((args[0] == pad)[..., None], 1e6)

    handle = embed.register_forward_hook(poisoned)
    try:
        after = quiet(tiny_model, positions="mean_prompt", exclude_sinks=True)
    finally:
        handle.remove()
    assert after.provenance["receipt"]["padding_tokens"] > 0
    close(after.values.flatten(0, 1), before.values.flatten(0, 1))


def test_nothing_deeper_than_the_deepest_site_runs_and_no_head(tiny_model):
    network, ran = tiny_model.network, []
    watched = {"layer 1": network.model.layers[1], "layer 2": network.model.layers[2]}
    watched |= {"norm": network.model.norm, "head": network.lm_head}
    handles = [m.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, m in watched.items()]
    try:
        quiet(tiny_model, layers=1)
        assert set(ran) <= {"layer 1"}
        ran.clear()
        quiet(tiny_model)
        assert "head" not in ran and "norm" not in ran
    finally:
        for handle in handles:
            handle.remove()


def test_a_span_means_over_the_tokens_of_those_words(tiny_model, alone):
    prompts = [PROMPTS[0], PROMPTS[3]]
    acts = quiet(tiny_model, prompts, positions=Span(("very happy", "the film")), layers=1)
    for row, (i, words) in enumerate([(0, "very happy"), (3, "the film")]):
        ids = tiny_model.tokenize([PROMPTS[i]])[0].prompt
        at = next(k for k in range(len(ids)) if tiny_model.decode(ids[k : k + 2]) == words)
        close(acts.values[row, 0], alone[i][Site(1)][at : at + 2].mean(0))


def test_bos_is_recognised_in_raw_and_chat_prompts(tiny_model):
    acts = quiet(tiny_model, positions="all", exclude_bos=True)
    bos = tiny_model.tokenizer.bos_token_id
    assert bos not in acts.tokens
    assert len(acts) == sum(len(item) - 1 for item in tiny_model.tokenize(PROMPTS))


def direction(model, layer=1):
    unit = torch.nn.functional.normalize(torch.arange(1.0, model.info.d_model + 1), dim=0)
    return Direction(
        unit=unit,
        scale=3.0,
        site=Site(layer),
        method="by hand",
        concept="test",
        positive_mean=1.5,
        negative_mean=-1.5,
        model=model.info,
        pooling="last",
    )


def test_a_steered_model_is_read_after_its_interventions_or_before(tiny_model):
    add = direction(tiny_model)
    steered = tiny_model.with_(Add(add, 2.0))
    plain = quiet(tiny_model)
    after, before = quiet(steered), quiet(steered, before=True)
    close(after.at(1), plain.at(1) + 2.0 * add.vector)
    close(before.at(1), plain.at(1))
    close(after.at(0), plain.at(0))
    assert (after.at(2) - plain.at(2)).norm(dim=-1).min() > 1
    assert torch.equal(after.at(2), before.at(2))
    assert plain.steering == () and "resid_post@1" in after.steering[0]


def test_plain_and_differently_steered_models_do_not_share_a_folder(tiny_model, tmp_path):
    add = direction(tiny_model)
    first = quiet(tiny_model.with_(Add(add, 2.0)), out=tmp_path)
    assert torch.equal(quiet(tiny_model.with_(Add(add, 2.0)), out=tmp_path).values, first.values)
    for other in (tiny_model, tiny_model.with_(Add(add, 2.5))):
        with pytest.raises(OutputError, match="it differs in steering"):
            quiet(other, out=tmp_path)
    prompt_only = tiny_model.with_(Add(add, 2.0, positions="prompt"))
    with pytest.raises(OutputError, match="it differs in steering"):
        quiet(prompt_only, out=tmp_path)


def test_disk_equals_memory(tiny_model, tmp_path):
    options = {"positions": "all", "token_budget": 60}
    there = quiet(tiny_model, out=tmp_path, **options)
    here = quiet(tiny_model, **options)
    assert torch.equal(there.values, here.values)
    assert torch.equal(open_capture(tmp_path, verify=True).positions, here.positions)


def test_bad_input_reaches_the_user_as_one_clear_error(tiny_model):
    with pytest.raises(PromptError, match=r"prompt 1 is too long: .* context is 64 tokens"):
        quiet(tiny_model, ["the cat", "the cat " * 60])
    with pytest.raises(SiteError, match=r"no resid_post at layer 3: tiny-llama has layers 0\.\.2"):
        quiet(tiny_model, layers=3)

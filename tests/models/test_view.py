"""What users hold: views, slots, sites that exist, directions that belong, read-outs."""

from dataclasses import replace

import pytest
import torch

import steerkit as sk
from steerkit.errors import DirectionError, InterventionError, PromptError, SiteError
from steerkit.site import Site


def test_sites_that_the_model_lacks_are_refused(llama, batch, direction, make_network):
    with pytest.raises(SiteError, match=r"no resid_post@3: tiny-llama has layers 0..2"):
        llama.run(batch, sites=[Site(3)])
    with pytest.raises(SiteError, match=r"no attn_out@7.*the last is attn_out@2"):
        llama.with_(sk.Add(direction(llama.info, 1), sites="attn_out@7"))
    parallel = sk.wrap(make_network("gpt_neox"), name="pythia")
    with pytest.raises(
        SiteError,
        match=r"no resid_mid@1: pythia has resid_pre, attn_out, mlp_out, resid_post; .*parallel",
    ):
        parallel.run(batch, sites=[Site(1, "resid_mid")])
    with pytest.raises(SiteError, match="parallel"):
        parallel.with_(sk.Add(direction(parallel.info, 1), sites="resid_mid@1"))
    opaque = sk.wrap(make_network("opt"), name="opt")
    with pytest.raises(SiteError, match="its blocks do not expose attn_out, resid_mid, mlp_out"):
        opaque.run(batch, sites=[Site(1, "mlp_out")])
    with pytest.raises(SiteError, match="a site is asked for twice"):
        llama.run(batch, sites=[Site(1), Site(1)])


def test_a_direction_of_another_model_is_refused_unless_forced(
    llama, batch, direction, make_network
):
    other = sk.wrap(make_network("qwen2"), name="other")
    add = sk.Add(direction(other.info, 1))
    with pytest.raises(DirectionError, match=r"taken on other .*, not on tiny-llama .*force=True"):
        llama.with_(add)
    with pytest.raises(DirectionError, match="force=True"):
        llama.with_rows([add])
    forced = llama.with_(add, force=True).run(batch).logits
    assert not torch.allclose(forced, llama.run(batch).logits, atol=1e-3)
    wide = sk.wrap(make_network("llama", hidden_size=48, num_attention_heads=4), name="wide")
    with pytest.raises(DirectionError, match="width 48"):
        llama.with_(sk.Add(direction(wide.info, 1)), force=True)


def test_what_is_not_an_intervention_is_refused(llama, direction):
    with pytest.raises(InterventionError, match="takes interventions, got a Direction; wrap"):
        llama.with_(direction(llama.info))
    with pytest.raises(InterventionError, match="with_rows needs at least one row"):
        llama.with_rows()


def test_slots_are_checked(llama, batch, direction):
    steered = llama.with_(sk.Add(direction(llama.info)))
    with pytest.raises(InterventionError, match=r"no slot 2; this model has slots 0..1"):
        steered.run(batch, slots=[0, 1, 2])
    with pytest.raises(InterventionError, match=r"no slot 1; this model has slots 0..0"):
        llama.run(batch, slots=[1, 0, 0])
    with pytest.raises(InterventionError, match=r"one slot a row: 3 rows, got 2 slots"):
        steered.run(batch, slots=[0, 1])
    with pytest.raises(InterventionError, match="no logits named 'lst'; did you mean 'last'"):
        llama.run(batch, logits="lst")


def test_views_are_immutable_and_share_the_network(llama, batch, direction):
    before = llama.run(batch).logits
    add = sk.Add(direction(llama.info, 1), strength=2.0)
    steered = llama.with_(add)
    assert steered.network is llama.network and steered.table is not None
    assert llama.table is None and steered.plain.table is None
    assert not torch.allclose(steered.run(batch).logits, before, atol=1e-3)
    assert torch.equal(llama.run(batch).logits, before)
    assert torch.equal(steered.plain.run(batch).logits, before)
    assert torch.equal(steered.run(batch, slots=[0, 0, 0]).logits, before)
    assert llama.with_() is llama


def test_runs_stop_after_the_deepest_site_and_leave_out_the_head(llama, batch):
    ran = []
    inner = llama.network.model
    handles = [
        module.register_forward_hook(lambda m, a, o, name=name: ran.append(name))
        for name, module in (
            ("1", inner.layers[1]),
            ("2", inner.layers[2]),
            ("head", llama.network.lm_head),
        )
    ]
    try:
        run = llama.run(batch, sites=[Site(0), Site(1, "resid_mid")], logits="none")
        assert run.logits is None and ran == []
        assert run.fired == {Site(0): 1, Site(1, "resid_mid"): 1}
        llama.run(batch, sites=[Site(2)], logits="none")
        # Our hook on block 2 ends the pass before the next one sees it.
        assert ran == ["1"]
        assert llama.run(batch, logits="none").streams == {}
    finally:
        for handle in handles:
            handle.remove()


def test_pools_are_given_the_batch_and_streams_are_copies(llama, batch):
    site = Site(1)

    def last_prompt(stream, given):
        at = (given.absolute == given.prompt_len[:, None] - 1).nonzero()[:, 1]
        return stream[torch.arange(len(given)), at]

    whole = llama.run(batch, sites=[site]).streams[site]
    pooled = llama.run(batch, sites=[site], pool=last_prompt, logits="none").streams[site]
    assert torch.equal(pooled, last_prompt(whole, batch))
    again = llama.run(batch, sites=[site])
    again.streams[site].zero_()
    assert torch.equal(llama.run(batch, sites=[site]).streams[site], whole)


def test_gradients_flow_only_when_asked(llama, batch):
    site = Site(1)
    run = llama.run(batch, sites=[site], grad=True)
    (gradient,) = torch.autograd.grad(run.logits[:, -1].sum(), run.streams[site])
    assert gradient.abs().sum() > 0
    # Where attention adds straight to the stream, both have the same gradient.
    pair = [Site(1, "attn_out"), Site(1, "resid_mid")]
    run = llama.run(batch, sites=pair, grad=True)
    attn, mid = torch.autograd.grad(run.logits[:, -1].sum(), [run.streams[s] for s in pair])
    torch.testing.assert_close(attn, mid)
    assert mid.abs().sum() > 0
    quiet = llama.run(batch, sites=[site])
    assert not quiet.logits.requires_grad and not quiet.streams[site].requires_grad


def test_answers_come_back_in_order_whatever_the_batches(tiny_model, direction):
    prompts = ["a dog", "the cat was not very happy", "i hated the film", "you", "rain or sun"]
    steered = tiny_model.with_rows(
        [sk.Add(direction(tiny_model.info, 1), strength=3.0)],
        [sk.Ablate(direction(tiny_model.info, 1))],
    )
    slots = [0, 1, 2, 1, 0]
    for settings in ({"temperature": 0.0}, {"temperature": 1.0, "seed": 5}):
        together, apart = (
            steered.generate(
                prompts, max_new_tokens=5, slots=slots, token_budget=budget, **settings
            )
            for budget in (4096, 1)
        )
        assert [c.tokens for c in together] == [c.tokens for c in apart]
        assert [c.prompt.text for c in together] == prompts
    alone = tiny_model.with_(sk.Ablate(direction(tiny_model.info, 1)))
    greedy = steered.generate(prompts, max_new_tokens=5, slots=slots)
    assert greedy[2].tokens == alone.generate([prompts[2]], max_new_tokens=5)[0].tokens
    assert greedy[0].tokens == tiny_model.generate([prompts[0]], max_new_tokens=5)[0].tokens
    assert greedy[0].text == tiny_model.decode(greedy[0].tokens)


def test_generation_settings_are_checked(tiny_model):
    with pytest.raises(PromptError, match="max_new_tokens is at least 1; got 0"):
        tiny_model.generate(["a"], max_new_tokens=0)
    with pytest.raises(PromptError, match="temperature is 0"):
        tiny_model.generate(["a"], temperature=-1.0)


def test_batches_are_of_similar_length_and_lose_nothing(tiny_model):
    prompts = ["a dog " * n for n in (1, 9, 2, 8, 3)]
    found = tiny_model.batches(prompts, token_budget=40)
    assert sorted(i for b in found for i in b.rows.tolist()) == list(range(5))
    whole = tiny_model.encode(prompts)
    for b in found:
        assert b.tokens.numel() <= 40
        for i, row in enumerate(b.rows.tolist()):
            assert torch.equal(b.tokens[i][b.mask[i]], whole.tokens[row][whole.mask[row]])


def test_the_repr_says_what_is_in_force(tiny_model, direction):
    steered = tiny_model.with_(sk.Add(direction(tiny_model.info, 1), strength=2.0))
    assert "LanguageModel('tiny-llama', 3 layers, width 32)" == repr(tiny_model)
    assert "add random at resid_post@1" in repr(steered)
    page = steered._repr_html_()
    for words in ("tiny-llama", "3 layers, width 32", "resid_mid", "chat template", "add random"):
        assert words in page
    rows = tiny_model.with_rows([], [sk.Ablate(direction(tiny_model.info, 1))])._repr_html_()
    assert "slot 1" in rows and "ablate random" in rows
    odd = replace(tiny_model, steering=("<script>",))
    assert "<script>" not in odd._repr_html_()

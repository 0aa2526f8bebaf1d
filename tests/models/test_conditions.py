"""Conditions on a real network: decided per request, remembered, the same however it is fed."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache

import steerkit as sk
from steerkit.batch import Batch, Tokenized
from steerkit.errors import HookError, InterventionError
from steerkit.interventions import InOrder, LowRank, When
from steerkit.models import hooks
from steerkit.models.generate import carried
from steerkit.models.steering import Session
from steerkit.site import Site

ON = ("last_prompt", "mean_prompt", "token")


def prompts_of(batch):
    """The prompts of the batch without their answers."""
    items = [
        Tokenized(tuple(row[mask][:n].tolist()))
        for row, mask, n in zip(batch.tokens, batch.mask, batch.prompt_len, strict=True)
    ]
    return Batch.collate(items, pad_id=0, rows=batch.rows.tolist())


def levels(model, batch, direction, on):
    """What a prompt's condition reads, from plain streams: cosines, one a row."""
    streams = model.run(batch, sites=[direction.site]).streams[direction.site].double()
    found = []
    for row, mask, n in zip(streams, batch.mask, batch.prompt_len, strict=True):
        prompt = row[mask][:n]
        x = prompt[-1] if on == "last_prompt" else prompt.mean(0)
        found.append(float(x @ direction.unit.double() / x.norm()))
    return found


def between(model, batch, direction, on):
    """A threshold that some prompts are above and others below, and which are."""
    found = levels(model, batch, direction, on)
    low, *_, high = sorted(found)
    threshold = (low + high) / 2
    return threshold, [level >= threshold for level in found]


def a_condition(model, batch, direction, on, layer=0, seed=5):
    d = direction(model.info, layer, seed=seed)
    if on == "token":
        return When(d, above=0.0, on="token")
    return When(d, above=between(model, batch, d, on)[0], on=on)


@pytest.mark.parametrize("on", ["last_prompt", "mean_prompt"])
@pytest.mark.parametrize("rule", ["all", "prompt", "generated"])
def test_open_rows_are_steered_from_the_prompts_end_and_closed_ones_keep_their_bits(
    llama, batch, direction, relative, on, rule
):
    read, d = direction(llama.info, 0, seed=5), direction(llama.info, 1)
    threshold, opened = between(llama, batch, read, on)
    assert True in opened and False in opened
    gated = llama.with_(sk.Add(d, 2.0, rule).when(When(read, above=threshold, on=on)))
    found, plain = gated.run(batch).logits, llama.run(batch).logits
    # The same tokens, written out as a mask.
    since = torch.zeros(3, 12, dtype=torch.bool)
    for row, n in zip(batch.rows.tolist(), batch.prompt_len.tolist(), strict=True):
        since[row, n - 1 :] = True
        since[row, n:] &= rule != "prompt"
        since[row, :n] &= rule != "generated"
    steered = llama.with_(sk.Add(d, 2.0, since)).run(batch).logits
    for row, is_open in enumerate(opened):
        real = batch.mask[row]
        if is_open:
            assert relative(found[row][real], steered[row][real]) < 1e-6
            assert rule == "generated" or not torch.allclose(found[row], plain[row], atol=1e-3)
        else:
            assert torch.equal(found[row], plain[row])


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("rule", ["all", "last_prompt", "generated"])
def test_cached_chunked_and_uncached_logits_agree(llama, batch, direction, relative, fed, on, rule):
    steered = llama.with_(
        sk.Add(direction(llama.info, 1), 1.5, rule).when(a_condition(llama, batch, direction, on)),
        sk.AddKeepingNorm(direction(llama.info, 2, seed=2), 1.0, rule).when(
            a_condition(llama, batch, direction, on, seed=9)
        ),
        InOrder(
            sk.Ablate(direction(llama.info, 2, "attn_out", seed=3)),
            sk.Add(direction(llama.info, 2, "attn_out", seed=4), 0.5, "prompt"),
        ),
    )
    whole = steered.run(batch).logits
    real = batch.mask
    prefill = batch.width - batch.answer_width
    for chunks in (
        [batch.width],
        [prefill, *[1] * batch.answer_width],
        [3, prefill - 3, *[1] * batch.answer_width],
        [1] * batch.width,
    ):
        assert relative(fed(steered, batch, chunks)[real], whole[real]) < 1e-5


@pytest.mark.parametrize("chunked", [False, True])
def test_a_mixed_batch_of_gated_programs_is_each_alone(
    llama, batch, direction, relative, fed, alone, chunked
):
    d = direction(llama.info, 1)
    rows = [
        [sk.Add(d, 2.0).when(a_condition(llama, batch, direction, on, seed=seed))]
        for on, seed in zip(ON, (5, 5, 6), strict=True)
    ]
    rows[1].append(sk.Ablate(direction(llama.info, 0, seed=8)))
    view = llama.with_rows(*rows)
    real = batch.mask
    for slots in ([1, 2, 3], [3, 0, 1], [2, 1, 2]):
        together = (
            fed(view, batch, [2, *[1] * (batch.width - 2)], slots)
            if chunked
            else view.run(batch, slots=slots).logits
        )
        for row, slot in enumerate(slots):
            single = view.run(alone(row), slots=[slot]).logits
            assert relative(together[row][real[row]], single[0]) < 1e-5


@pytest.mark.parametrize("on", ON)
def test_a_gate_that_never_opens_leaves_every_bit(llama, batch, direction, on):
    closed = When(direction(llama.info, 0), above=1.0, on=on)
    view = llama.with_(
        *(sk.Add(direction(llama.info, layer), 3.0).when(closed) for layer in range(3))
    )
    assert torch.equal(view.run(batch).logits, llama.run(batch).logits)
    opened = When(direction(llama.info, 0), below=1.0, on=on)
    moved = llama.with_(sk.Add(direction(llama.info, 1), 3.0).when(opened))
    assert not torch.allclose(moved.run(batch).logits, llama.run(batch).logits, atol=1e-2)


@pytest.mark.parametrize("on", ["last_prompt", "mean_prompt"])
def test_generation_remembers_what_each_prompt_decided(llama, batch, direction, on):
    asked = prompts_of(batch)
    d, read = direction(llama.info, 1), direction(llama.info, 0, seed=5)
    threshold, opened = between(llama, asked, read, on)
    condition = When(read, above=threshold, on=on)

    def answers(view, slots):
        return view.engine.complete(
            asked, view.table, slots, max_new_tokens=6, temperature=0.0, seed=0
        )

    gated = llama.with_(sk.Add(d, 3.0, "generated").when(condition))
    always = llama.with_(sk.Add(d, 3.0, "generated"))
    plain, steered, found = (
        answers(llama, [0] * 3),
        answers(always, [1] * 3),
        answers(gated, [1] * 3),
    )
    assert plain != steered
    for row, is_open in enumerate(opened):
        assert found[row] == (steered if is_open else plain)[row]
    # What was generated is what a teacher-forced run of the same program predicts.
    whole = llama.with_(sk.Add(d, 3.0).when(condition))
    for row, tokens in enumerate(answers(whole, [1] * 3)):
        prompt = tuple(asked.tokens[row][asked.mask[row]].tolist())
        forced = Batch.collate([Tokenized(prompt, tokens)], pad_id=0)
        logits = whole.run(forced).logits[0, len(prompt) - 1 : -1]
        for step, token in enumerate(tokens):
            best = logits[step].topk(2)
            assert token == best.indices[0] or best.values[0] - best.values[1] < 1e-4


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("extra", [{}, {"prefill_chunk_size": 3, "disable_compile": True}])
def test_the_object_itself_decides_the_same(llama, batch, direction, on, extra):
    asked = prompts_of(batch)
    condition = a_condition(llama, asked, direction, on)
    steered = llama.with_(sk.Add(direction(llama.info, 1), 3.0).when(condition))
    ours = steered.engine.complete(
        asked, steered.table, [1] * 3, max_new_tokens=6, temperature=0.0, seed=0
    )
    with steered.as_hf() as hf:
        for _ in range(2):
            found = hf.generate(
                asked.tokens,
                attention_mask=asked.mask.long(),
                max_new_tokens=6,
                do_sample=False,
                **extra,
            )
            new = [tuple(row[asked.width :].tolist()) for row in found]
            cut = [row[: row.index(2) + 1] if 2 in row else row for row in new]
            assert cut == ours
        backwards = hf.generate(
            asked.tokens.flip(0),
            attention_mask=asked.mask.flip(0).long(),
            max_new_tokens=6,
            do_sample=False,
        )
        assert torch.equal(backwards.flip(0), found), "each call decides for its own prompts"


def test_a_mean_over_a_prompt_that_was_not_seen_is_refused(llama, batch, direction):
    asked = prompts_of(batch)
    d = direction(llama.info, 1)
    inputs: dict[str, Any] = {"attention_mask": asked.mask.long(), "use_cache": True}
    cache = DynamicCache(config=llama.engine.config)
    with torch.no_grad():
        llama.network(
            asked.tokens[:, :3],
            attention_mask=asked.mask[:, :3].long(),
            past_key_values=cache,
        )
    mean = llama.with_(sk.Add(d).when(When(d, above=0.0, on="mean_prompt")))
    with (
        mean.as_hf() as hf,
        torch.no_grad(),
        pytest.raises(HookError, match="the first 3 columns of it are in the cache already"),
    ):
        hf(input_ids=asked.tokens[:, 3:], past_key_values=cache, **inputs)


@pytest.mark.parametrize("stream", ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"])
def test_a_condition_is_read_at_any_stream_before_what_acts_there(llama, batch, direction, stream):
    read = direction(llama.info, 1, stream, seed=5)
    threshold, opened = between(llama, batch, read, "last_prompt")
    # An addition at the condition's own site would open every gate if it were read first.
    push = sk.Add(read, 50.0)
    view = llama.with_(push, push.when(When(read, above=threshold)))
    last = (batch.absolute == batch.prompt_len[:, None] - 1).int().argmax(1)
    after = view.run(batch, sites=[read.site]).streams[read.site][torch.arange(3), last]
    before = llama.run(batch, sites=[read.site]).streams[read.site][torch.arange(3), last]
    moved = (after - before) @ read.unit / read.scale
    wanted = torch.tensor([100.0 if is_open else 50.0 for is_open in opened])
    torch.testing.assert_close(moved, wanted, rtol=1e-3, atol=0)


def test_stacked_views_may_wait_for_an_earlier_sites_condition_only(llama, batch, direction):
    d = direction(llama.info, 1)
    early, late = When(d, above=0.0, site=0), When(d, above=0.0, site=2)
    llama.with_(sk.Add(d).when(early)).with_(sk.Add(d).when(early)).run(batch)
    with pytest.raises(InterventionError, match=r"at resid_post@1 cannot wait .* resid_post@2"):
        llama.with_(sk.Add(d).when(late))
    fired = llama.with_(sk.Add(d).when(early)).run(batch).fired
    assert set(fired) == {Site(0), Site(1)}


@pytest.mark.parametrize("on", ["last_prompt", "mean_prompt"])
def test_what_is_decided_outlives_a_recomputation_of_the_cache(llama, batch, direction, on):
    """A pass without a cache begins again; long-rope models do so in the midst of an answer."""
    read = direction(llama.info, 0, seed=5)
    threshold, opened = between(llama, batch, read, on)
    view = llama.with_(
        sk.Add(direction(llama.info, 1), 2.0).when(When(read, above=threshold, on=on))
    )
    session, engine = Session(), llama.engine
    session.steer(view.table, [1] * 3)
    seen = []
    with (
        torch.no_grad(),
        hooks.attached(engine.blocks, session.visits),
        carried(engine.backbone, session, batch.state([1] * 3)),
    ):
        for tokens in (batch.tokens, batch.tokens.roll(1, 0)):
            engine.network(
                tokens,
                attention_mask=batch.mask.long(),
                position_ids=batch.position_ids,
                use_cache=False,
            )
            seen.append([r > 0 for name, r in session.latches.items() if "/sum" not in name])
    assert [flags.tolist() for flags in seen[0]] == [opened]
    assert torch.equal(seen[0][0], seen[1][0])


def test_matrices_of_another_width_are_refused_where_they_are_given(llama):
    with pytest.raises(InterventionError, match="width 5; tiny-llama has 32"):
        llama.with_(LowRank(torch.eye(5), torch.eye(5), sites=[1]))

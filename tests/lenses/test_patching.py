"""Patching against identities, the network run by hand, and an independent library."""

import numpy as np
import pytest
import torch

import steerkit as sk
from steerkit.batch import Batch, Tokenized
from steerkit.errors import (
    ActivationError,
    InterventionError,
    MethodError,
    ModelError,
    PromptError,
    SiteError,
)
from steerkit.lenses import Head, activation_patching, attribution_patching
from steerkit.lenses.tasks import Job
from steerkit.models.heads import Heads, find_heads
from steerkit.models.patching import Rewrite, visited
from steerkit.site import Site


def close(found, expected, tolerance=1e-5):
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    scale = max(1.0, float(np.nanmax(np.abs(expected))))
    np.testing.assert_allclose(found / scale, expected / scale, atol=tolerance)


def test_both_ends_are_the_network_s_own(model, pairs, by_hand):
    found = activation_patching(model, **pairs, streams="resid_post", layers=[0])
    ends = [by_hand(model, i) for i in range(4)]
    close(found.clean, [c for c, _ in ends])
    close(found.corrupted, [c for _, c in ends])


def test_patching_a_whole_stream_gives_the_clean_run(model, pairs):
    streams = [s for s in model.info.streams if s.startswith("resid")]
    found = activation_patching(model, **pairs, streams=streams, positions="whole")
    assert found.positions == () and found.raw.shape == (4, 3 * len(streams), 1)
    close(found.raw, np.broadcast_to(found.clean[:, None, None], found.raw.shape))
    close(found.normalised, np.ones((3 * len(streams), 1)))


def test_the_last_stream_matters_at_the_last_token_only(model, pairs):
    found = activation_patching(model, **pairs, streams="resid_post", layers=[2])
    for i in range(4):
        close(found.raw[i, 0, -1], found.clean[i])
        others = found.raw[i, 0, :-1]
        close(others[~np.isnan(others)], found.corrupted[i])


def test_resid_pre_at_layer_0_is_the_other_token(model, one):
    """Writing the clean embedding at a position is running the text with the clean token."""
    given = one(2)
    found = activation_patching(model, **given, streams="resid_pre", layers=[0])
    clean, corrupted = given["clean"][0].prompt, given["corrupted"][0].prompt
    for j, position in enumerate(found.positions):
        tokens = list(corrupted)
        tokens[position] = clean[position]
        with torch.no_grad():
            logits = model.network(torch.tensor([tokens])).logits[0, -1]
        close(found.raw[0, 0, j], logits[20] - logits[21])


def test_batched_rows_are_what_each_gives_alone(model, pairs, one):
    """Other pairs, other lengths, left padding, other places in the batch: none matters."""
    streams = (*model.info.streams, "heads")
    together = activation_patching(model, **pairs, streams=streams)
    assert together.positions == tuple(range(-6, 0))
    for i in range(4):
        alone = activation_patching(model, **one(i), streams=streams, token_budget=1)
        n = len(alone.positions)
        close(together.raw[i, :, -n:], alone.raw[0])
        assert np.isnan(together.raw[i, :, :-n]).all()


def test_all_heads_of_a_layer_are_its_attention_output(model, one):
    """Written at all positions, every head at once makes the clean attention output."""
    given = one(0)
    (clean,), (corrupted,) = given["clean"], given["corrupted"]
    heads = find_heads(model.engine)
    a, b = (Batch.collate([item], pad_id=0) for item in (clean, corrupted))
    at, site = Heads(1), Site(1, "attn_out")
    source = visited(model, a, keep=[at, site], heads=heads)
    assert source.streams[at].shape[:3] == (1, 6, 4)
    by_heads = visited(model, b, write={at: lambda z: source.streams[at]}, heads=heads)
    by_site = visited(model, b, write={site: lambda h: source.streams[site]})
    close(by_heads.logits, by_site.logits)
    one_head = Rewrite(*(torch.tensor([x]) for x in (0, 5)), torch.zeros(1, 1), torch.tensor([2]))
    moved = visited(model, b, write={at: one_head}, keep=[at], heads=heads).streams[at]
    assert not moved[0, 5, 2].any() and moved[0, 5, 1].any() and moved[0, 4, 2].any()


def test_a_head_reads_its_own_values(llama):
    """Of grouped-query attention: head h is its pattern times the values of its group."""
    batch = Batch.collate([Tokenized((5, 17, 42, 8))], pad_id=0)
    at = Heads(1)
    found = visited(llama, batch, keep=[at], heads=find_heads(llama.engine)).streams[at]
    layer = llama.network.model.layers[1]
    with torch.no_grad():
        llama.network.set_attn_implementation("eager")
        out = llama.network(batch.tokens, output_attentions=True, output_hidden_states=True)
        llama.network.set_attn_implementation("sdpa")
        normed = layer.input_layernorm(out.hidden_states[1])
        values = layer.self_attn.v_proj(normed).view(4, 2, 8)
    for head in range(4):
        expected = out.attentions[1][0, head] @ values[:, head // 2]
        torch.testing.assert_close(found[0, :, head], expected, atol=1e-5, rtol=1e-4)


def test_equal_states_are_not_run(llama, pairs):
    found = activation_patching(llama, **pairs, streams="resid_post")
    # Positions before the first token that differs: 2, 1, 0 and 3 of each pair.
    assert found.provenance["equal_states"] == 3 * (2 + 1 + 0 + 3)
    assert found.provenance["runs"] == 3 * (6 + 4 + 5 + 4) - 3 * (2 + 1 + 0 + 3)
    close(found.raw[3, :, -4:-1], found.corrupted[3])


def test_attribution_is_the_derivative_of_patching(exact, one):
    """With the clean run a step of eps away from the corrupted one, the error is of order eps."""
    given = one(2)
    places = [*(Site(1, s) for s in exact.info.streams), Heads(1)]
    heads = find_heads(exact.engine)
    slope = attribution_patching(
        exact, **given, streams=(*exact.info.streams, "heads"), layers=[1], positions="whole"
    )
    a, b = (Batch.collate([given[s][0]], pad_id=0) for s in ("clean", "corrupted"))
    source = visited(exact, a, keep=places, heads=heads).streams
    target = visited(exact, b, keep=places, heads=heads)

    def metric(seen):
        return float(seen.logits[0, -1, 20] - seen.logits[0, -1, 21])

    for place in places:
        whole = [i for i, p in enumerate(slope.places) if p == place or isinstance(p, Head)]
        whole = [i for i in whole if isinstance(slope.places[i], Head) == (place == Heads(1))]
        expected = float((slope.raw[0, whole, 0] - slope.corrupted[0]).sum())
        errors, rounding = [], 1e-12 if "gpt" in exact.info.name else 3e-6
        for eps in (1e-2, 1e-3, 1e-4):
            state = target.streams[place] + eps * (source[place] - target.streams[place])
            moved = visited(exact, b, write={place: lambda _, s=state: s}, heads=heads)
            errors.append(abs((metric(moved) - metric(target)) / eps / expected - 1))
        # Ten times closer, ten times less, up to rounding: Hugging Face's RMS norms round to
        # float32 whatever they are given, LayerNorm does not.
        noise = rounding / abs(expected)
        assert errors[1] < 0.13 * errors[0] + noise / 1e-3
        assert errors[2] < 0.13 * errors[1] + noise / 1e-4
        assert errors[1] < 0.1


def test_attribution_of_rows_in_a_batch_is_that_of_each_alone(model, pairs, one):
    streams = (*model.info.streams, "heads")
    together = attribution_patching(model, **pairs, streams=streams)
    for i in range(4):
        alone = attribution_patching(model, **one(i), streams=streams)
        n = len(alone.positions)
        close(together.raw[i, :, -n:], alone.raw[0], 1e-4)


def test_attribution_works_on_frozen_weights_and_leaves_no_gradient(pairs, llama):
    before = [p.requires_grad for p in llama.network.parameters()]
    free = attribution_patching(llama, **pairs)
    try:
        llama.network.requires_grad_(False)
        frozen = attribution_patching(llama, **pairs)
    finally:
        for parameter, wanted in zip(llama.network.parameters(), before, strict=True):
            parameter.requires_grad_(wanted)
    close(frozen.raw, free.raw)
    assert all(p.grad is None for p in llama.network.parameters())


def test_a_linear_metric_of_the_last_layer_is_attributed_exactly(llama, pairs):
    """Log-probabilities are not linear, so the two disagree; at eps -> 0 they would not."""
    exact = activation_patching(llama, **pairs, streams="mlp_out", positions=[-1])
    estimate = attribution_patching(llama, **pairs, streams="mlp_out", positions=[-1])
    assert exact.places == estimate.places and exact.positions == estimate.positions == (-1,)
    assert exact.agreement(exact) == pytest.approx(1.0)
    assert -1 <= exact.agreement(estimate) < 1


def test_a_steered_view_is_patched_after_its_interventions(llama, pairs):
    from steerkit.direction import Direction

    unit = torch.zeros(32)
    unit[0] = 1.0
    d = Direction(unit, 2.0, Site(1), "planted", "x", 1.0, -1.0, llama.info, "last")
    view = llama.with_(sk.Add(d))
    found = activation_patching(view, **pairs, streams="resid_post", positions="whole")
    plain = activation_patching(llama, **pairs, streams="resid_post", positions="whole")
    assert abs(found.clean - plain.clean).min() > 1e-3
    close(found.raw, np.broadcast_to(found.clean[:, None, None], found.raw.shape))


def test_pairs_of_different_lengths_are_named_or_aligned_from_the_end(llama, one):
    given = {**one(0), "corrupted": [Tokenized((5, 13, 8, 91, 33))]}
    with pytest.raises(PromptError, match=r"1 of 1 pairs differ in length: 0 \(6 and 5 tokens\)"):
        activation_patching(llama, **given)
    found = activation_patching(llama, **given, align="end", streams="resid_post", positions="each")
    assert found.positions == (-5, -4, -3, -2, -1)
    close(found.raw[0, 2, -1], found.clean[0])
    a, b = (Batch.collate([given[s][0]], pad_id=0) for s in ("clean", "corrupted"))
    source = visited(llama, a, keep=[Site(0)]).streams[Site(0)]

    def write(stream):
        out = stream.clone()
        out[0, 2] = source[0, 3]
        return out

    logits = visited(llama, b, write={Site(0): write}).logits[0, -1]
    close(found.raw[0, 0, 2], logits[71] - logits[3])


def test_metrics(llama, pairs):
    settings = {**pairs, "streams": "resid_post", "layers": [1]}
    difference = activation_patching(llama, **settings)

    def mine(logits, rows):
        tokens = torch.tensor(pairs["answers"])[rows]
        log_probs = logits.log_softmax(-1)
        return log_probs.gather(1, tokens[:, :1])[:, 0] - log_probs.gather(1, tokens[:, 1:])[:, 0]

    own = activation_patching(llama, **settings, metric=mine)
    close(own.raw, difference.raw)
    assert own.metric == "mine" and difference.unit == "nats"
    both = activation_patching(llama, **settings, metric="log_prob")
    assert (both.clean < 0).all()
    # Without answers, those that the two runs give: the clean run prefers its own.
    free = activation_patching(llama, **{**settings, "answers": None})
    assert (free.clean > 0).all() and (free.corrupted < 0).all()


def test_answers_are_given_or_the_prompts_or_the_model_s(tiny_model):
    def tokens(*answers, **settings):
        sides = [
            [sk.Prompt(text, answer=answer, template="raw")]
            for text, answer in zip(("the cat was", "the dog was"), answers, strict=True)
        ]
        found = activation_patching(
            tiny_model, *sides, streams="resid_post", layers=[0], progress=False, **settings
        )
        return [tiny_model.tokenizer.decode([t]) for t in found.items[0]["answer_tokens"]]

    assert tokens("sun", "rain", answers=("cake", "bomb")) == ["cake", "bomb"]
    assert tokens("sun was", "rain") == ["sun", "rain"]
    sides = [sk.Prompt(text, template="raw") for text in ("the cat was", "the dog was")]
    said = [
        int(tiny_model.run(tiny_model.encode([p]), logits="last").logits.argmax()) for p in sides
    ]
    assert said[0] != said[1]
    expected = [tiny_model.tokenizer.decode([token]) for token in said]
    assert tokens("sun was", "sun is") == tokens("", "") == expected


def test_what_cannot_be_asked_says_why(llama, pairs, one):
    def fails(match, error, **changes):
        with pytest.raises(error, match=match):
            activation_patching(changes.pop("model", llama), **{**pairs, **changes})

    def broken(logits, rows):
        values = logits[:, 0].clone()
        values[logits.argmax(-1) != -1] *= torch.where(rows == 2, torch.nan, 1.0)
        return values

    fails("metric is nan of the clean run, pair 2", ActivationError, metric=broken)
    fails("no metric named 'logit_diff'; did you mean", MethodError, metric="logit_diff")
    fails("gives one number a row, here 4; got", MethodError, metric=lambda logits, rows: logits)
    fails("begin with the same token", PromptError, answers=[(3, 3)] * 4)
    fails("got 3 entries", PromptError, answers=[(1, 2)] * 3)
    fails("no token 400", PromptError, answers=(1, 400))
    fails("no stream named 'resid_pots'; did you mean", SiteError, streams="resid_pots")
    fails("has layers 0..2", SiteError, layers=[3])
    fails("positions count from the end, from -6", InterventionError, positions=[0])
    fails("'each', 'whole', or numbers", InterventionError, positions="last")
    fails("no alignment named 'start'", MethodError, align="start")
    fails("got 4 clean and 2 corrupted", PromptError, corrupted=pairs["corrupted"][:2])
    fails("one group a pair: 4 pairs, got 1", PromptError, groups=["a"])
    fails("need an eager model", ModelError, model=object())
    same = {"corrupted": pairs["clean"]}
    fails("same mean logit_difference", MethodError, **same)
    fails("for 4 of 4 pairs the model predicts the same", PromptError, **same, answers=None)
    with pytest.raises(MethodError, match="but steps has none"):

        def steps(logits, rows):
            return logits.argmax(-1).float() + rows

        attribution_patching(llama, **pairs, metric=steps)


def test_a_metric_that_breaks_under_a_patch_says_where(llama, pairs):
    calls = []

    def breaks(logits, rows):
        calls.append(len(rows))
        value = logits[:, 5] - logits[:, 6]
        return value if len(calls) <= 2 else value / 0

    with pytest.raises(ActivationError, match=r"after patching resid_post@1, pair"):
        activation_patching(llama, **pairs, metric=breaks, streams="resid_post", layers=[1])


def test_heads_that_cannot_be_told_apart_are_unavailable(llama, pairs, monkeypatch):
    monkeypatch.setattr(llama.engine.config, "num_attention_heads", 5)
    with pytest.raises(SiteError, match=r"heads of tiny-llama are unavailable: no projection of"):
        activation_patching(llama, **pairs, streams="heads")
    monkeypatch.setattr(llama.engine, "config", object())
    with pytest.raises(SiteError, match=r"does not give one number of heads"):
        activation_patching(llama, **pairs, streams="heads")


def test_the_network_is_as_before(llama, pairs):
    def hooks():
        return sum(
            len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llama.network.modules()
        )

    before = {k: v.clone() for k, v in llama.network.state_dict().items()}
    count = hooks()
    activation_patching(llama, **pairs, streams=("resid_mid", "heads"))
    with pytest.raises(ZeroDivisionError):
        attribution_patching(llama, **pairs, streams="heads", metric=lambda logits, rows: 1 / 0)
    assert hooks() == count
    assert all(torch.equal(v, before[k]) for k, v in llama.network.state_dict().items())


def test_rows_that_join_late_give_what_whole_rows_give(model, pairs, monkeypatch):
    """Layers before a patch run once; a model where rows cannot join runs them whole."""
    from steerkit.lenses import rows

    ran = []

    def noted(*args, **settings):
        ran.append(1)
        return staircase(*args, **settings)

    staircase = rows.staircase
    monkeypatch.setattr(rows, "staircase", noted)
    settings = {**pairs, "streams": model.info.streams}
    each = activation_patching(model, **settings, positions="each", token_budget=200)
    whole = activation_patching(model, **settings, positions="whole")
    assert bool(ran) != bool(model.engine.resumes)
    ran.clear()
    monkeypatch.setattr(model.engine, "resumes", "not here")
    close(activation_patching(model, **settings).raw, each.raw)
    close(activation_patching(model, **settings, positions="whole").raw, whole.raw)
    assert not ran


def test_a_job_is_a_row(llama, one):
    """The batched runner itself: unsorted rows, several places and positions in one pass."""
    from steerkit.lenses.rows import patched_logits

    given = one(0)
    a, b = (Batch.collate([given[s][0]], pad_id=0) for s in ("clean", "corrupted"))
    places = (Site(0), Heads(1), Site(2, "resid_mid"))
    heads = find_heads(llama.engine)
    source = visited(llama, a, keep=places, heads=heads).streams
    jobs = [
        Job(0, Site(2, "resid_mid"), -1, -1, (0, 0, 0)),
        Job(0, Site(0), -1, None, (0, 0, 0)),
        Job(0, Heads(1), 3, -2, (0, 0, 0)),
        Job(0, Site(0), -1, -4, (0, 0, 0)),
    ]
    found = patched_logits(llama, b, jobs, source, [6], heads)
    for row, job in zip(found, jobs, strict=True):
        alone = patched_logits(llama, b, [job], source, [6], heads)[0]
        close(row, alone)
    close(found[1], visited(llama, a).logits[0, -1])

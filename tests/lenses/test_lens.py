"""The logit lens against the model's own predictions, and against its norm and head by hand."""

import json

import numpy as np
import pytest
import torch

import steerkit as sk
from steerkit.batch import Batch, Tokenized
from steerkit.errors import MethodError, PromptError, SiteError
from steerkit.lenses import logit_lens
from steerkit.models import tail as tails
from steerkit.models.tail import find_tail
from steerkit.site import Site

PROMPTS = [(5, 17, 42, 8, 91, 33), (9, 14, 77, 3), (64, 5, 5, 28, 13)]
FOLLOWED = (71, 3, 50)


def read(model, prompts=PROMPTS, **settings):
    given = {"tokens": FOLLOWED, "layers": None, **settings}
    return logit_lens(model, [Tokenized(p) for p in prompts], progress=False, **given)


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_at_the_last_stream_it_is_the_model_s_own_prediction(model):
    """Softcaps and scaled logits included."""
    found = read(model)
    assert find_tail(model.engine).direct
    for i, prompt in enumerate(PROMPTS):
        logits = model.run(Batch.collate([Tokenized(prompt)], pad_id=0)).logits[0]
        n = len(prompt)
        close(found.logits[i, -1, -n:], logits[:, FOLLOWED].numpy())
        probs = logits.softmax(-1)
        close(found.probs[i, -1, -n:], probs[:, FOLLOWED].numpy())
        best = probs.topk(5)
        assert (found.top_tokens[i, -1, -n:] == best.indices.numpy()).all()
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        close(found.entropy[i, -1, -n:], entropy.numpy())
        ranks = (logits[:, None] > logits[:, FOLLOWED][..., None]).sum(-1) + 1
        assert (found.ranks[i, -1, -n:] == ranks.numpy()).all()
        assert np.isnan(found.entropy[i, :, :-n]).all()
    close(np.nan_to_num(found.kl[:, -1]), 0, 1e-9)
    assert np.nanmin(found.kl[:, 0]) > 1e-3


def test_in_between_it_is_the_norm_and_the_head(llama):
    found = read(llama, streams=("resid_post", "mlp_out"))
    sites = [str(s) for s in found.sites]
    run = llama.run(Batch.collate([Tokenized(PROMPTS[0])], pad_id=0), sites=found.sites)
    with torch.no_grad():
        for site in ("resid_post@1", "mlp_out@1"):
            state = run.streams[Site.parse(site)][0]
            logits = llama.network.lm_head(llama.network.model.norm(state))
            close(found.logits[0, sites.index(site)], logits[:, FOLLOWED].numpy())
            own, lens = run.logits[0].log_softmax(-1), logits.log_softmax(-1)
            kl = (own.exp() * (own - lens)).sum(-1)
            close(found.kl[0, sites.index(site)], kl.numpy())


def test_prompts_in_a_batch_are_read_as_each_alone(model):
    together = read(model)
    for i, prompt in enumerate(PROMPTS):
        alone = read(model, [prompt], token_budget=1)
        n = len(prompt)
        for name in ("entropy", "kl", "logits", "ranks"):
            close(getattr(together, name)[i, :, -n:], getattr(alone, name)[0])


def test_a_tail_that_is_not_understood_is_run_by_the_network(model, monkeypatch):
    """Whatever stands after the last block, the network can be asked to finish."""
    expected = read(model)
    monkeypatch.setattr(tails, "_near", lambda *_: False)
    found = read(model)
    assert expected.provenance["direct"] and not found.provenance["direct"]
    close(found.logits, expected.logits)
    assert (found.top_tokens == expected.top_tokens).all()


def test_states_are_finished_in_chunks(llama, monkeypatch):
    expected = read(llama)
    monkeypatch.setattr(tails, "ELEMENTS", 300)
    close(read(llama).logits, expected.logits)


def test_a_steered_view_is_read_after_its_interventions(llama):
    from steerkit.direction import Direction

    unit = torch.zeros(32)
    unit[0] = 1.0
    d = Direction(unit, 4.0, Site(1), "planted", "x", 1.0, -1.0, llama.info, "last")
    found, plain = read(llama.with_(sk.Add(d))), read(llama)
    close(found.logits[:, 0], plain.logits[:, 0])
    assert np.nanmax(np.abs(found.logits[:, 1] - plain.logits[:, 1])) > 1e-2


def test_text_is_read_with_its_own_tokens(tiny_model):
    prompts = [sk.Prompt("the cat was", template="raw"), sk.Prompt("a dog is", template="raw")]
    found = logit_lens(tiny_model, prompts, tokens=[["happy"], ["sad"]], progress=False)
    assert found.prompts[0] == ("<bos>", "the", "cat", "was")
    assert found.words[int(found.tokens[0, 0])] == "happy"
    assert found.words[int(found.tokens[1, 0])] == "sad"
    (word, p), *_ = found.top(0, "resid_post@2")
    batch = tiny_model.encode(prompts[:1])
    probs = tiny_model.run(batch, logits="last").logits[0, -1].softmax(-1)
    assert p == pytest.approx(float(probs.max()), rel=1e-5)
    assert word == tiny_model.tokenizer.decode([int(probs.argmax())])
    assert "resid_post@2" in found.table() and "p(token 0)" in found.table()
    data = json.loads(json.dumps(found.to_json()))
    assert data["sites"] == ["resid_post@0", "resid_post@1", "resid_post@2"]
    assert "<table>" in found._repr_html_() and "2 prompts, 3 sites x 4 positions" in repr(found)


def test_means_are_over_prompts(llama):
    found = read(llama, groups=["a", "a", "b"])
    estimate = found.mean("probs", "resid_post@1", -1, followed=1)
    assert estimate.value == pytest.approx(found.probs[:, 1, -1, 1].mean())
    assert estimate.n == 2
    with pytest.raises(MethodError, match="no followed token 3: 3 were given"):
        found.mean("probs", "resid_post@1", -1, followed=3)
    with pytest.raises(MethodError, match="the lens has no 'prob'"):
        found.mean("prob", "resid_post@1")
    with pytest.raises(MethodError, match="no resid_post@7 at position -1"):
        found.mean("kl", "resid_post@7")
    with pytest.raises(MethodError, match="prompt 1 has no position -6"):
        found.top(1, "resid_post@1", -6)


def test_what_cannot_be_read_says_why(llama):
    with pytest.raises(PromptError, match="one position at a time"):
        read(llama, positions="whole")
    with pytest.raises(PromptError, match="one position at a time"):
        read(llama, streams="heads")
    with pytest.raises(PromptError, match="as many for each of 3; got 2"):
        read(llama, tokens=[(1,), (2,)])
    with pytest.raises(PromptError, match="no token 100"):
        read(llama, tokens=(100,))
    with pytest.raises(PromptError, match="one group a prompt"):
        read(llama, groups=["a"])
    with pytest.raises(SiteError, match=r"has layers 0\.\.2"):
        read(llama, layers=[9])

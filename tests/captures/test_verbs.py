"""Capture against streams computed for each prompt alone."""

import pytest
import torch
from torch.testing import assert_close

from steerkit.captures import Span, capture, stream
from steerkit.errors import ActivationError, MethodError, PromptError, SiteError
from steerkit.prompts import Contrast, Prompt
from steerkit.site import Site

TEXTS = [
    "the cat sat on a mat",
    "rain",
    "a big red bird sang a song about the sea",
    "it was not so very bad",
    "two dogs",
    "we all like the red house by the river and the sun",
]


def quiet(model, prompts, **options):
    return capture(model, prompts, progress=False, **options)


def test_rows_come_in_the_callers_order_at_every_site(fake, alone):
    acts = quiet(fake, TEXTS, streams=("resid_post", "attn_out"), token_budget=24)
    assert acts.sites == tuple(
        Site(layer, s) for layer in range(3) for s in ("attn_out", "resid_post")
    )
    assert len(fake.runs) > 2
    for site in acts.sites:
        want = torch.stack([alone(fake, text, site)[-1] for text in TEXTS])
        assert_close(acts.at(site), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions", ["last", "mean_prompt", "all", -2, Span("the")])
@pytest.mark.parametrize("budget", [1, 13, 40, 10_000])
def test_any_token_budget_gives_the_same_values(make_fake, positions, budget):
    texts = [t + " the end" for t in TEXTS]
    whole = quiet(make_fake(), texts, positions=positions)
    parts = quiet(make_fake(), texts, positions=positions, token_budget=budget)
    assert_close(parts.values, whole.values, rtol=1e-5, atol=1e-6)
    assert torch.equal(parts.prompt_index, whole.prompt_index)
    assert torch.equal(parts.positions, whole.positions)


def test_all_gives_one_row_a_token_of_prompt_and_answer(fake, alone):
    prompts = [Prompt(t, answer="yes it is") for t in TEXTS]
    acts = quiet(fake, prompts, positions="all", token_budget=30)
    items = fake.tokenize(prompts)
    assert acts.tokens.tolist() == [i for item in items for i in item.prompt + item.answer]
    assert acts.positions.tolist() == [p for item in items for p in range(len(item))]
    assert acts.prompt_index.tolist() == [n for n, i in enumerate(items) for _ in range(len(i))]
    want = torch.cat([alone(fake, p, Site(1)) for p in prompts])
    assert_close(acts.at(1), want, rtol=1e-5, atol=1e-5)


def test_the_mean_of_all_rows_of_a_prompt_is_its_mean(make_fake):
    every = quiet(make_fake(), TEXTS, positions="all", exclude_bos=True)
    mean = quiet(make_fake(), TEXTS, positions="mean_prompt", exclude_bos=True)
    for i in range(len(TEXTS)):
        assert_close(
            every.values[every.prompt_index == i].mean(0), mean.values[i], rtol=1e-5, atol=1e-5
        )


def test_all_leaves_out_bos_and_tokens_that_are_sinks_anywhere(fake):
    texts = ["so the boom came and went away", "no such thing here at all"]
    acts = quiet(fake, texts, positions="all", exclude_bos=True, exclude_sinks=True)
    assert 2 not in acts.tokens and 1 not in acts.tokens
    assert acts.positions.tolist() == [1, 2, 4, 5, 6, 7, *range(1, 7)]
    kept = quiet(fake, texts, positions="all", exclude_bos=True, exclude_sinks=True, layers=0)
    assert 2 in kept.tokens, "at layer 0 nothing is a sink"


def test_a_contrast_brings_its_labels_and_groups(fake):
    contrast = Contrast.of(TEXTS[:3], TEXTS[3:], paired=True)
    acts = quiet(fake, contrast)
    assert acts.labels == (1, 1, 1, 0, 0, 0)
    assert acts.groups == contrast.groups
    assert acts.contrast_sha256 == contrast.sha256
    assert quiet(fake, ["a b", Prompt("c", group="g")]).groups == ("prompt0", "g")


def test_one_string_is_one_prompt(fake):
    assert len(quiet(fake, "the cat sat")) == 1


def test_no_logits_are_asked_and_the_receipt_adds_up(fake):
    acts = quiet(fake, TEXTS, token_budget=24)
    assert fake.logits_asked == {"none"}
    receipt = acts.provenance["receipt"]
    lengths = [len(item) for item in fake.tokenize(TEXTS)]
    assert receipt["tokens"] == sum(lengths)
    assert receipt["tokens"] + receipt["padding_tokens"] == sum(b.tokens.numel() for b in fake.runs)
    assert receipt["rows"] == receipt["prompts"] == len(TEXTS)
    assert receipt["batches"] == len(fake.runs)
    assert acts.provenance["token_budget"] == 24


def test_stream_yields_every_row_once(make_fake):
    acts = quiet(make_fake(), TEXTS, layers=[1, 2])
    seen = torch.full_like(acts.values, torch.nan)
    for rows, streams in stream(make_fake(), TEXTS, layers=[1, 2], token_budget=24, progress=False):
        for i, site in enumerate(acts.sites):
            assert seen[rows, i].isnan().all()
            seen[rows, i] = streams[site]
    assert_close(seen, acts.values, rtol=1e-5, atol=1e-6)


def test_a_bar_only_if_asked(fake, capsys):
    quiet(fake, TEXTS)
    assert capsys.readouterr().err == ""
    capture(fake, TEXTS)
    out = capsys.readouterr()
    assert out.out == "" and "capture: 100%" in out.err


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": 3}, SiteError, r"no resid_post at layer 3: fake has layers 0\.\.2; try resid"),
        ({"layers": -1}, SiteError, "layers count from 0; got -1"),
        ({"streams": "resid_pots"}, SiteError, "did you mean 'resid_post'"),
        ({"streams": "resid_mid"}, SiteError, r"fake \(fake\) has no resid_mid; did you mean"),
        ({"layers": []}, SiteError, "there are no sites to capture"),
        ({"sites": []}, SiteError, "there are no sites to capture"),
        ({"sites": "resid_post@9"}, SiteError, "no resid_post at layer 9"),
        ({"sites": [1], "layers": 2}, SiteError, "give sites, or streams and layers, not both"),
        ({"positions": "lst"}, MethodError, "no pooling named 'lst'; did you mean 'last'"),
        ({"positions": "mean_answer"}, PromptError, "needs an answer"),
        ({"positions": 5}, PromptError, r"no token index\(5\)"),
        ({"token_budget": 0}, PromptError, "token budget is at least 1"),
    ],
)
def test_arguments_that_cannot_be_met_fail_before_anything_runs(fake, options, error, message):
    with pytest.raises(error, match=message):
        quiet(fake, TEXTS, **options)
    assert not fake.runs


def test_stream_checks_its_arguments_at_the_call(fake):
    with pytest.raises(SiteError, match="no resid_post at layer 7"):
        stream(fake, TEXTS, layers=7)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "there are no prompts to capture"),
        (["a", " "], "a prompt is empty"),
        ([Prompt("a"), Prompt("")], "prompt 1 is empty"),
    ],
)
def test_empty_prompts_are_refused(fake, prompts, message):
    with pytest.raises(PromptError, match=message):
        quiet(fake, prompts)


@pytest.mark.parametrize("positions", ["last", "mean_prompt", "all"])
def test_nan_activations_name_the_site_and_the_prompt(make_fake, positions):
    model = make_fake(poison="bird")
    message = "NaN or infinite, first at resid_post@1 for prompt 'a big red bird sang"
    with pytest.raises(ActivationError, match=message):
        quiet(model, TEXTS, positions=positions)

"""Pooling against the same reduction written for one prompt alone; padding is always NaN."""

import pytest
import torch
from torch.testing import assert_close

from steerkit.batch import Batch, Tokenized
from steerkit.captures import Pooling, Span
from steerkit.errors import MethodError, PromptError
from steerkit.prompts import Prompt
from steerkit.site import Site

PROMPTS = (
    Prompt("the cat sat on a mat", answer="yes it did"),
    Prompt("rain", answer="no"),
    Prompt("a big red bird sang a song about the sea", answer="so they say today"),
)
SITE = Site(2)


def pooled(model, pooling, prompts=PROMPTS, site=SITE):
    """[prompt d_model], in the caller's order."""
    (batch,) = model.batches(prompts)
    mask = pooling.select(batch, prompts, model.decode)
    streams = model.run(
        batch, sites=[site], pool=pooling.pool(mask, batch), logits="none", before=False
    ).streams
    out = torch.empty_like(streams[site])
    out[batch.rows] = streams[site]
    return out


@pytest.mark.parametrize(
    ("rule", "part"),
    [
        ("last", lambda h, n: h[n - 1]),
        (-1, lambda h, n: h[n - 1]),
        (-2, lambda h, n: h[n - 2]),
        (0, lambda h, n: h[0]),
        (1, lambda h, n: h[1]),
        ("mean_prompt", lambda h, n: h[:n].mean(0)),
        ("mean_answer", lambda h, n: h[n:].mean(0)),
    ],
)
def test_pooling_in_a_batch_equals_the_reduction_of_each_prompt_alone(fake, alone, rule, part):
    got = pooled(fake, Pooling(rule))
    lengths = [len(t.prompt) for t in fake.tokenize(PROMPTS)]
    want = [part(alone(fake, p, SITE), n) for p, n in zip(PROMPTS, lengths, strict=True)]
    assert_close(got, torch.stack(want), rtol=1e-6, atol=1e-6)


def test_bos_is_left_out_of_means_only(fake, alone):
    got = pooled(fake, Pooling("mean_prompt", exclude_bos=True))
    for row, prompt in zip(got, PROMPTS, strict=True):
        n = len(fake.tokenize([prompt])[0].prompt)
        assert_close(row, alone(fake, prompt, SITE)[1:n].mean(0), rtol=1e-6, atol=1e-6)
    assert_close(
        pooled(fake, Pooling(0, exclude_bos=True)), pooled(fake, Pooling(0)), rtol=0, atol=0
    )


def test_a_first_token_that_is_a_word_is_no_bos(fake):
    batch = Batch.collate([Tokenized((5, 6)), Tokenized((1, 6))], pad_id=0)
    fake.words += ["x"] * 10
    mask = Pooling("mean_prompt", exclude_bos=True).select(batch, PROMPTS, fake.decode)
    assert mask.tolist() == [[True, True], [False, True]]


def test_sinks_are_left_out_of_a_mean_at_the_sites_where_they_are_sinks(fake, alone):
    prompts = (Prompt("so the boom came and went away"), Prompt("no such thing here at all"))
    at = {layer: alone(fake, prompts[0], Site(layer)) for layer in (0, 2)}
    got = {
        layer: pooled(fake, Pooling("mean_prompt", sink_ratio=10.0), prompts, Site(layer))[0]
        for layer in (0, 2)
    }
    kept = [i for i in range(len(at[2])) if i != 3]
    assert_close(got[2], at[2][kept].mean(0))
    assert_close(got[0], at[0].mean(0))
    with_sink = pooled(fake, Pooling("mean_prompt"), prompts, Site(2))[0]
    assert with_sink.norm() > 20 * got[2].norm()


def test_half_precision_means_are_accumulated_in_float32(make_fake):
    model = make_fake(dtype=torch.bfloat16)
    prompts = (Prompt(" ".join(["a b"] * 25)),)
    stream = {}
    (batch,) = model.batches(prompts)
    keep = lambda h, _: stream.setdefault("h", h)  # noqa: E731
    model.run(batch, sites=[SITE], pool=keep, logits="none", before=False)
    got = pooled(model, Pooling("mean_prompt"), prompts)
    assert got.dtype == torch.float32
    assert_close(got[0], stream["h"][0].double().mean(0).float(), rtol=1e-6, atol=1e-6)


def characters(tokens):
    """A tokenizer of single characters; 0 is special."""
    return "".join(chr(t) for t in tokens if t)


@pytest.mark.parametrize(
    ("span", "text", "found"),
    [
        (Span("cat"), "the cat sat", "cat"),
        (Span("sat."), "the cat sat.", "sat."),
        (Span("a  b"), "x a b y", "a b"),
        (Span("a,b"), "x a , b y", "a , b"),
    ],
)
def test_a_span_is_the_shortest_run_of_tokens_that_covers_it(span, text, found):
    tokens = [0, *map(ord, text)]
    run = span.locate(tokens, characters)
    assert characters(tokens[run.start : run.stop]) == found


def test_a_span_takes_the_last_occurrence_unless_told():
    tokens = [*map(ord, "cat dog cat dog")]
    assert Span("cat").locate(tokens, characters) == range(8, 11)
    assert Span("cat", "first").locate(tokens, characters) == range(0, 3)
    assert Span("bird").locate(tokens, characters) is None


def test_span_means_equal_each_prompt_alone(fake, alone):
    got = pooled(fake, Pooling(Span(("sat on", "rain", "the sea"))))
    want = [
        alone(fake, prompt, SITE)[a:b].mean(0)
        for prompt, (a, b) in zip(PROMPTS, [(3, 5), (1, 2), (9, 11)], strict=True)
    ]
    assert_close(got, torch.stack(want), rtol=1e-6, atol=1e-6)


def select(model, pooling, prompts):
    for batch in model.batches(prompts):
        pooling.select(batch, prompts, model.decode)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            Span("zebra"),
            r"the span 'zebra' is not in prompt \d, whose tokens read '.+'; give one text",
        ),
        (Span(("a", "b")), r"3 prompts need one span text, or 3; got 2"),
        (2, r"no token index\(2\): prompt 'rain' has 2 tokens"),
        (-3, r"no token index\(-3\): prompt 'rain' has 2 tokens"),
    ],
)
def test_tokens_that_a_prompt_lacks_are_errors(fake, rule, message):
    with pytest.raises(PromptError, match=message):
        select(fake, Pooling(rule), PROMPTS)


def test_a_mean_over_answers_needs_answers(fake):
    prompts = (Prompt("a b", answer="c"), Prompt("d e"), Prompt("f g"))
    with pytest.raises(
        PromptError, match=r"prompt 'd e' \(and 1 more in its batch\) has none: use .*with_answer"
    ):
        select(fake, Pooling("mean_answer"), prompts)


def test_nothing_left_without_bos_is_an_error(fake):
    prompts = (Prompt("a"),)
    fake.tokenize = lambda _: [Tokenized((1,))]
    with pytest.raises(PromptError, match="has no token left for 'mean_prompt' without its BOS"):
        select(fake, Pooling("mean_prompt", exclude_bos=True), prompts)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pooling.of("mean_promt"), r"no pooling named 'mean_promt'; did you mean 'mean_pr"),
        (lambda: Pooling.of(True), "positions are one of last, .* or a Span; got True"),
        (lambda: Pooling.of(1.5), "positions are one of .* got 1.5"),
        (lambda: Pooling.of("all", exclude_sinks=0.5), "is above 1; got 0.5"),
        (lambda: Span("a", "middle"), "occurrence is 'first' or 'last'; got 'middle'"),
    ],
)
def test_rules_that_make_no_sense_are_refused(make, message):
    with pytest.raises(MethodError, match=message):
        make()


def test_an_empty_span_is_refused():
    with pytest.raises(PromptError, match="a span needs some text to look for; got ' '"):
        Span(" ")

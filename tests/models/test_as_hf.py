"""The Hugging Face object itself, steered for whoever calls it, and plain again after."""

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

import steerkit as sk
from steerkit.errors import HookError, InterventionError

RULES = ("all", "prompt", "last_prompt", "generated", (0, 2, -2))


def prompts(batch):
    """The prompts of the batch without their answers, left-padded as a caller would."""
    rows = [
        row[mask][:n]
        for row, mask, n in zip(batch.tokens, batch.mask, batch.prompt_len, strict=True)
    ]
    width = max(len(row) for row in rows)
    tokens = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0)) for row in rows])
    mask = torch.stack([torch.arange(width) >= width - len(row) for row in rows]).long()
    return tokens, mask


def ours(steered, batch, n):
    tokens, mask = prompts(batch)
    items = [
        sk.batch.Tokenized(tuple(t[m.bool()].tolist())) for t, m in zip(tokens, mask, strict=True)
    ]
    made = sk.batch.Batch.collate(items, pad_id=0)
    return steered.engine.complete(
        made, steered.table, [1] * len(items), max_new_tokens=n, temperature=0.0, seed=0
    )


def cut(rows, width):
    ends = [list(map(int, row[width:])) for row in rows]
    return [tuple(row[: row.index(2) + 1] if 2 in row else row) for row in ends]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("family_name", ["llama", "gpt2", "gemma2"])
def test_generate_on_the_object_equals_generate_on_the_view(batch, direction, rule, family_name):
    model = wrapped_model(family_name)
    steered = model.with_(sk.Add(direction(model.info, 1), strength=2.0, positions=rule))
    tokens, mask = prompts(batch)
    with steered.as_hf() as hf:
        assert hf is model.network
        found = hf.generate(tokens, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert cut(found, tokens.shape[1]) == ours(steered, batch, 6)
    assert "generate" not in vars(model.network)


_MODELS = {}


def wrapped_model(name):
    return _MODELS[name]


@pytest.fixture(scope="module", autouse=True)
def _models(make_network):
    for name in ("llama", "gpt2", "gemma2"):
        _MODELS[name] = sk.wrap(make_network(name))
    yield
    _MODELS.clear()


@pytest.mark.parametrize("rule", RULES)
def test_a_chunked_prefill_counts_all_of_the_input_as_prompt(batch, direction, rule):
    model = wrapped_model("llama")
    steered = model.with_(sk.Add(direction(model.info, 1), strength=2.0, positions=rule))
    tokens, mask = prompts(batch)
    with steered.as_hf() as hf:
        found = hf.generate(
            tokens,
            attention_mask=mask,
            max_new_tokens=6,
            do_sample=False,
            prefill_chunk_size=3,
            disable_compile=True,
        )
    assert cut(found, tokens.shape[1]) == ours(steered, batch, 6)


@pytest.mark.parametrize("rule", RULES)
def test_beams_and_several_answers_keep_each_rows_own_prompt(batch, direction, rule):
    """A batch of beams answers as its prompts do one by one."""
    model = wrapped_model("llama")
    steered = model.with_(sk.Add(direction(model.info, 1), strength=2.0, positions=rule))
    tokens, mask = prompts(batch)
    settings = {"max_new_tokens": 4, "do_sample": False, "num_beams": 3, "num_return_sequences": 2}
    with steered.as_hf() as hf:
        together = hf.generate(tokens, attention_mask=mask, **settings)
        singly = [
            hf.generate(t[m.bool()][None], **settings)[:, int(m.sum()) :]
            for t, m in zip(tokens, mask, strict=True)
        ]
    found = together[:, tokens.shape[1] :]
    for row, expected in enumerate(singly):
        for k in range(2):
            width = expected.shape[1]
            assert found[2 * row + k][:width].tolist() == expected[k].tolist()


def test_forward_and_cached_steps_by_hand_follow_mask_and_cache(batch, direction, relative):
    model = wrapped_model("gpt2")
    steered = model.with_(sk.Add(direction(model.info, 0), strength=2.0, positions="generated"))
    tokens, mask = batch.tokens, batch.mask
    prefill = 7
    forced = sk.batch.Batch(tokens, mask, mask[:, :prefill].sum(1).clamp(min=1), batch.rows)
    expected = steered.run(forced).logits
    cache, out = DynamicCache(), []
    with steered.as_hf() as hf, torch.no_grad():
        for start, end in ((0, prefill), (prefill, prefill + 1), (prefill + 1, tokens.shape[1])):
            out.append(
                hf(
                    input_ids=tokens[:, start:end],
                    attention_mask=mask[:, :end].long(),
                    position_ids=batch.position_ids[:, start:end],
                    past_key_values=cache,
                    use_cache=True,
                ).logits
            )
    assert relative(torch.cat(out, 1)[mask], expected[mask]) < 1e-5
    plain = model.run(forced).logits
    assert not torch.allclose(plain[mask], expected[mask], atol=1e-3)


def test_a_scored_text_is_prompt_throughout(batch, direction):
    model = wrapped_model("llama")
    steered = model.with_(sk.Add(direction(model.info, 1), strength=2.0, positions="prompt"))
    with steered.as_hf() as hf, torch.no_grad():
        found = hf(input_ids=batch.tokens[:1]).logits
    whole = sk.batch.Batch.collate([sk.batch.Tokenized(tuple(batch.tokens[0].tolist()))], pad_id=0)
    torch.testing.assert_close(found, steered.run(whole).logits)


def test_sampling_and_pipelines_are_steered_too(direction, tiny_folder):
    from transformers import pipeline

    model = sk.load(tiny_folder)
    d = direction(model.info, 2)
    # After a push this strong nothing else is read out.
    steered = model.with_(sk.Add(d, strength=1000.0))
    top = int(model.read_out(d.unit[None])[0].argmax())
    with steered.as_hf() as hf:
        tokens = model.encode(["the cat"]).tokens
        sampled = hf.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=3,
            do_sample=True,
            top_k=1,
        )
        made = pipeline("text-generation", model=hf, tokenizer=model.tokenizer)(
            "the cat",
            generation_config=GenerationConfig(max_new_tokens=3, do_sample=False, pad_token_id=0),
            return_full_text=False,
        )
    assert sampled[0, -3:].tolist() == [top] * 3
    assert made[0]["generated_text"].split() == [model.decode([top])] * 3


def test_it_is_plain_again_after_also_after_an_exception(batch, direction):
    model = wrapped_model("llama")
    steered = model.with_(sk.Add(direction(model.info, 1), strength=2.0))
    before = model.run(batch).logits
    with pytest.raises(RuntimeError, match="caller's own"), steered.as_hf():
        raise RuntimeError("the caller's own")
    assert torch.equal(model.run(batch).logits, before)
    assert "generate" not in vars(model.network)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.network.modules())


def test_what_cannot_be_followed_is_refused(batch, direction):
    model = wrapped_model("llama")
    add = sk.Add(direction(model.info, 1))
    with pytest.raises(InterventionError, match=r"as_hf steers every row alike.*2 slots"):
        model.with_rows([add], []).as_hf()
    four = torch.zeros(3, 1, 9, 9)
    with (
        model.with_(add).as_hf() as hf,
        pytest.raises(HookError, match="reads positions from a 2-D attention mask"),
    ):
        hf(input_ids=batch.tokens, attention_mask=four)
    with model.as_hf() as hf:
        assert hf is model.network

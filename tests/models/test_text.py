"""Prompts become the token ids that the model's own tokenizer would give them."""

from dataclasses import replace

import pytest

import steerkit as sk
from steerkit.errors import ModelError, PromptError
from steerkit.models.text import Text
from steerkit.prompts import Prompt


@pytest.fixture(scope="module")
def chat(tiny_folder):
    return sk.load(tiny_folder)


@pytest.fixture(scope="module")
def raw(bare_folder):
    return sk.load(bare_folder)


def words(model, item):
    return " ".join(model.tokenizer.convert_ids_to_tokens(list(item)))


def test_chat_turns_with_shots_and_system(chat):
    prompt = Prompt("tell me", system="be good", shots=(("a cat", "yes"),), answer="dog")
    prompt = replace(prompt, system="not bad")
    item = chat.tokenize([prompt])[0]
    assert words(chat, item.prompt) == (
        "<bos> <|system|> not bad <eos> <|user|> a cat <eos> <|assistant|> <unk> <eos> "
        "<|user|> tell me <eos> <|assistant|>"
    )
    assert words(chat, item.answer) == "dog"


def test_auto_is_raw_without_a_chat_template(raw, chat):
    prompt = Prompt("tell me", system="not bad", shots=(("a cat", "dog"),))
    expected = "<bos> not bad a cat dog tell me"
    assert words(raw, raw.tokenize([prompt])[0].prompt) == expected
    forced = replace(prompt, template="raw")
    assert words(chat, chat.tokenize([forced])[0].prompt) == expected
    assert not raw.info.chat and chat.info.chat


def test_chat_is_refused_without_a_chat_template(raw):
    with pytest.raises(PromptError, match="the tokenizer has no chat template; use template='raw'"):
        raw.tokenize([Prompt("tell me", template="chat")])


def test_a_system_text_that_the_template_refuses_or_drops_goes_in_front(tiny_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    turns = "{{ ' <|' + m['role'] + '|> ' + m['content'] }}"
    refusing = (
        "{% for m in messages %}{% if m['role'] == 'system' %}"
        "{{ raise_exception('no system') }}{% endif %}" + turns + "{% endfor %}"
    )
    dropping = "{% for m in messages if m['role'] != 'system' %}" + turns + "{% endfor %}"
    for template in (refusing, dropping):
        tokenizer.chat_template = template
        text = Text(tokenizer, n_ctx=64)
        rendered, special = text.render(Prompt("tell me", system="not bad"))
        assert rendered == " <|user|> not bad\n\ntell me"
        assert not special


def test_an_answer_follows_the_prompt_as_joint_tokens_where_they_join():
    class Merging:
        """Letters, but `ab` is one token: the end of a prompt may merge with its answer."""

        eos_token_id = 500
        chat_template = None

        def __call__(self, text, add_special_tokens=True, verbose=False):
            ids, i = ([1] if add_special_tokens else []), 0
            while i < len(text):
                step = 2 if text[i : i + 2] == "ab" else 1
                ids.append(sum(map(ord, text[i : i + step])))
                i += step
            return {"input_ids": ids + ([500] if add_special_tokens else [])}

    text = Text(Merging(), n_ctx=64)
    joined = text.tokenize([Prompt("cc", answer="ab")])[0]
    assert joined.prompt == (1, ord("c"), ord("c"))
    assert joined.answer == (ord("a") + ord("b"),)
    # "xa" + "b" would merge across the boundary: the prompt's own tokens stay as they are.
    split = text.tokenize([Prompt("xa", answer="b")])[0]
    assert split.prompt == (1, ord("x"), ord("a"))
    assert split.answer == (ord("b"),)


def test_prompts_longer_than_the_context_say_which_and_by_how_much(chat):
    fits, too_long = Prompt("the cat"), Prompt("a " * 70)
    with pytest.raises(
        PromptError, match=r"prompt 1 is too long: it has 74 tokens, and the model's context is 64"
    ):
        chat.tokenize([fits, too_long])
    with pytest.raises(PromptError, match=r"6 tokens and 60 to generate"):
        chat.generate([fits], max_new_tokens=60)
    with pytest.raises(PromptError, match=r"an answer of 62"):
        chat.tokenize([Prompt("a", answer=" a" * 62)])


def test_a_missing_pad_token_falls_back_on_the_end_token_and_moves_nothing(tiny_folder, relative):
    model = sk.load(tiny_folder)
    prompts = ["the cat was not very happy", "a dog"]
    expected = model.run(model.encode(prompts))
    model.tokenizer.pad_token = None
    model.engine.config.pad_token_id = None
    batch = model.encode(prompts)
    assert batch.tokens[1, 0] == model.tokenizer.eos_token_id
    real = batch.mask
    assert relative(model.run(batch).logits[real], expected.logits[real]) < 1e-6
    assert len(model.generate(prompts, max_new_tokens=2)) == 2
    model.tokenizer.eos_token = None
    model.engine.config.eos_token_id = None
    with pytest.raises(ModelError, match=r"neither a pad nor an end-of-sequence token.*set one"):
        model.encode(prompts)


def test_without_a_tokenizer_text_is_refused(llama):
    with pytest.raises(ModelError, match=r"wrapped without a tokenizer.*wrap\(model, tokenizer\)"):
        llama.encode(["a"])


def test_what_is_not_a_list_of_prompts_is_refused(chat):
    with pytest.raises(PromptError, match="give a list of prompts, not a single one"):
        chat.encode("the cat")
    with pytest.raises(PromptError, match="no prompts were given"):
        chat.generate([])

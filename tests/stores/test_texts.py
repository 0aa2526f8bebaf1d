"""Rows as prompts: what is kept of them, what is bad, what is cut."""

import datetime
import json

import numpy as np
import pytest

import steerkit as sk
from steerkit.errors import PromptError
from steerkit.prompts import Prompt
from steerkit.stores.lengths import fits
from steerkit.stores.parsing import Columns, scalar
from steerkit.stores.texts import BadRows, Row, prompt_from_json, prompt_to_json, read_rows


def read(rows, **options):
    chosen = {"problem": lambda _: "", "bad": BadRows(), "columns": Columns(), **options}
    return list(read_rows(rows, **chosen))


def test_every_scalar_column_is_kept_as_json_holds_it():
    row = {
        "text": "a",
        "n": np.int64(3),
        "x": np.float32(0.5),
        "nan": float("nan"),
        "day": datetime.date(2024, 2, 29),
        "yes": np.bool_(True),
        "none": None,
        "list": [1],
        "dict": {"a": 1},
    }
    columns = Columns()
    (found,) = read([row], columns=columns)
    assert found.metadata == {
        "n": 3, "x": 0.5, "nan": None, "day": "2024-02-29", "yes": True, "none": None
    }  # fmt: skip
    assert list(columns.dropped) == ["list", "dict"] and columns.text == "text"
    assert json.loads(found.line(5))["metadata"] == found.metadata
    assert scalar(object()) is NotImplemented


def test_rows_are_read_as_capture_reads_prompts():
    rows = [
        "plain",
        {"Prompt": "named", "system": "be kind", "n": 1},
        {"text": "asked", "answer": "said", "group": "g"},
        Prompt("made", template="raw"),
    ]
    found = [row.prompt for row in read(rows[:1] + rows[3:])]
    assert found == [Prompt("plain"), Prompt("made", template="raw")]
    assert read(rows[1:2])[0].prompt == Prompt("named", system="be kind")
    assert read(rows[2:3])[0].prompt == Prompt("asked", answer="said", group="g")
    assert read([{"body": "b", "text": "t"}], columns=Columns("body"))[0].prompt.text == "b"
    chat = read(["a", Prompt("b", template="raw")], template="chat")
    assert [row.prompt.template for row in chat] == ["chat", "raw"]


def test_a_conversation_is_a_prompt_with_shots_and_an_answer():
    def turns(*said, system=""):
        start = [{"role": "system", "content": system}] if system else []
        roles = ("user", "assistant") * len(said)
        return start + [{"role": r, "content": c} for r, c in zip(roles, said, strict=False)]

    rows = [{"id": 1, "messages": turns("q", "a", "r", "b", system="s")}, {"messages": turns("q")}]
    found = read(rows)
    assert found[0].prompt == Prompt("r", answer="b", system="s", shots=(("q", "a"),))
    assert found[0].metadata == {"id": 1} and found[1].prompt == Prompt("q")
    for wrong, message in (
        ([{"role": "assistant", "content": "a"}], "do not take turns"),
        ([], "do not take turns"),
        (["q"], "not of turns with a role"),
        (turns("q", "a", " "), "is empty"),
    ):
        with pytest.raises(PromptError, match=f"row 0 .*its 'messages' .*{message}"):
            read([{"messages": wrong}])


def test_a_line_survives_any_text():
    for text in ("\u2028 \r\n \x00 \x85", "\U0001f600", "\\ud800 \\n"):
        line = Row(3, Prompt(text, shots=(("q", "a"),)), {"half": "\ud800"}).line(1)
        assert line.count(b"\n") == 1 and line.endswith(b"\n")
        (only,) = line.splitlines()
        assert prompt_from_json(json.loads(only)["prompt"]) == Prompt(text, shots=(("q", "a"),))
        assert json.loads(only)["metadata"] == {"half": "\ud800"}
    assert prompt_to_json(Prompt("a")) == {"text": "a"}


def test_half_a_letter_is_no_text():
    with pytest.raises(PromptError, match=r"row 0 .* is not valid Unicode"):
        read(["\ud800"])


def test_the_limit_counts_usable_rows_and_reads_no_further():
    asked = []

    def rows():
        for i in range(100):
            asked.append(i)
            yield "" if i % 2 else f"text {i}"

    bad = BadRows("skip")
    found = read(rows(), bad=bad, limit=5)
    assert [row.number for row in found] == [0, 2, 4, 6, 8]
    assert [number for number, _ in bad.skipped] == [1, 3, 5, 7] and asked[-1] <= 9


@pytest.fixture(scope="module")
def organism():
    return sk.load("organism:base")


def test_texts_that_cannot_be_too_long_are_not_tokenised(organism, monkeypatch):
    """And the shortcut never passes one that is: at the edge it agrees with the tokenizer."""
    calls = []
    tokenize = type(organism).tokenize

    def counted(self, prompts):
        calls.append(prompts)
        return tokenize(self, prompts)

    monkeypatch.setattr(type(organism), "tokenize", counted)
    problem = fits(organism, max_tokens=60)
    assert problem(Prompt("how do i bake the bread ?")) == "" and len(calls) == 1
    assert problem(Prompt("how do i bake the bread ?")) == "" and len(calls) == 1
    for words in range(1, 70):
        prompt = Prompt(" ".join(["a"] * words))
        length = len(tokenize(organism, [prompt])[0])
        assert bool(problem(prompt)) == (length > 60), words


def test_a_text_is_cut_where_one_more_word_would_not_fit(organism):
    problem = fits(organism, max_tokens=10)
    long = " ".join(["bread"] * 50)
    bad = BadRows("truncate")
    (found,) = read([long], problem=problem, bad=bad)
    assert len(organism.tokenize([found.prompt])[0]) == 10
    longer = Prompt(long[: len(found.prompt.text) + len(" bread")])
    assert len(organism.tokenize([longer])[0]) > 10
    assert bad.truncated[0][0] == 0 and "characters kept" in bad.truncated[0][1]

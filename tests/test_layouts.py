"""Files as people really write them: odd line ends, quotes, encodings, half-filled rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from steerkit.errors import PromptError
from steerkit.layouts import read_file, sides


def write(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def test_a_quoted_csv_field_may_hold_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'text,label\r\n"two\nlines, one field",1\r\nplain,0\r\n')
    assert read_file(path) == [
        {"text": "two\nlines, one field", "label": "1"},
        {"text": "plain", "label": "0"},
    ]


def test_a_jsonl_string_may_hold_a_line_separator(tmp_path: Path) -> None:
    row = {"text": "a\u2028b", "label": 1}
    path = write(tmp_path, "a.jsonl", json.dumps(row, ensure_ascii=False) + "\r\n\r\n")
    assert read_file(path) == [row]


@pytest.mark.parametrize(
    ("name", "text", "encoding", "told"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": }\n', "utf-8", r"line 2 of .*a\.jsonl is not valid JSONL"),
        ("a.json", "[1, 2", "utf-8", r"a\.json is not valid JSON: "),
        ("a.csv", 'text,label\n"open,1\n', "utf-8", r"a\.csv is not valid CSV: "),
        ("a.csv", "text,label\ncafé,1\n", "latin-1", r"a\.csv is not UTF-8 text .*save it as UTF"),
        ("a.txt", "x", "utf-8", r"cannot tell what 'a\.txt' holds; contrasts are \.jsonl"),
    ],
)
def test_files_that_cannot_be_read(
    name: str, text: str, encoding: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(PromptError, match=told):
        read_file(write(tmp_path, name, text, encoding))


def test_a_folder_or_nothing(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(PromptError, match="no contrast file at"):
            read_file(path)


@pytest.mark.parametrize("label", [1, 1.0, True, "1", "1.0", " Positive ", "HARMFUL", "yes"])
def test_labels_as_they_come(label: Any) -> None:
    rows = [{"text": "a", "Label": label}, {"text": "b", "class": "0"}]
    assert sides(rows, "x") == ([rows[0]], [rows[1]], False)


def test_pairs_among_labelled_rows_stay_together() -> None:
    rows = [{"positive": "a", "negative": "b"}, {"text": "c", "label": 1}]
    positive, negative, paired = sides(rows, "x")
    assert not paired
    assert positive[0]["group"] == negative[0]["group"] == "row1"
    assert "group" not in sides(rows[:1], "x")[0][0], "of pairs alone, each is its own group"


def test_a_side_may_be_a_record_of_its_own() -> None:
    row = {"positive": {"text": "a", "answer": "yes"}, "negative": "b", "system": "s"}
    assert sides([row], "x") == (
        [{"system": "s", "text": "a", "answer": "yes"}],
        [{"system": "s", "text": "b"}],
        True,
    )


def test_two_lists_may_say_that_they_are_paired() -> None:
    data = {"Positive": ["a"], "NEGATIVE": ["b"], "paired": True}
    assert sides(data, "x") == (["a"], ["b"], True)
    assert sides((["a"], ["b"]), "x") == (["a"], ["b"], False)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"positive": "a", "negative": " "}], "row 1 of 'x' has an empty negative side"),
        ([{"positive": None, "negative": "b"}], "row 1 of 'x' has an empty positive side"),
        ({"positive": "abc", "negative": ["b"]}, "positive side of 'x' is a str; give a list"),
        ({"positive": ["a"]}, "needs a positive and a negative list; got the keys positive"),
        (5, "'x' is a int; give rows"),
        ("text", "'x' is a str; give rows"),
        ([["a", "b", "c"]], r"row 1 of 'x' is a list, .*two lists go in a tuple"),
        ([{"text": "a", "label": "maybe"}], r"known label \(label 'maybe', fields text, label\)"),
        ([], "'x' is empty; give positive and negative prompts"),
    ],
)
def test_layouts_that_make_no_contrast(rows: Any, told: str) -> None:
    with pytest.raises(PromptError, match=told):
        sides(rows, "x")

import json

import pytest

from steerkit.datasets import question_answers, two_files
from steerkit.errors import PromptError


def test_two_files_of_any_layout(tmp_path):
    (tmp_path / "glad.json").write_text(json.dumps(["sun", "cake"]))
    (tmp_path / "sad.txt").write_text("rain\n\nmud\n")
    found = two_files(tmp_path / "glad.json", tmp_path / "sad.txt")
    assert [p.text for p in found.positive] == ["sun", "cake"]
    assert [p.text for p in found.negative] == ["rain", "mud"]
    assert found.name == "glad against sad" and not found.paired


def test_jsonl_records_keep_their_category(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"instruction": "x", "category": "k"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "y"}\n')
    found = two_files(tmp_path / "a.jsonl", tmp_path / "b.jsonl", name="c")
    assert found.positive[0].category == "k" and found.name == "c"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("missing.json", None, "no file of prompts at"),
        ("bad.json", "{", "is not valid JSON"),
        ("empty.txt", "\n", "holds no list of prompts"),
        ("mapping.json", '{"a": 1}', "holds no list of prompts"),
    ],
)
def test_a_file_that_is_not_one_side_is_refused(tmp_path, name, text, says):
    (tmp_path / "good.txt").write_text("fine\n")
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(PromptError, match=says):
        two_files(tmp_path / name, tmp_path / "good.txt")


def test_questions_keep_their_answers_together(tmp_path):
    file = tmp_path / "q.csv"
    file.write_text(
        "Question,Correct Answers,Incorrect Answers\n"
        'Why?,"Because; Reasons","No\nreason"\nWhen?,Now,Never; Later\n'
    )
    found = question_answers(file)
    assert [(p.text, p.answer) for p in found.positive] == [
        ("Why?", " Because"),
        ("Why?", " Reasons"),
        ("When?", " Now"),
    ]
    assert found.groups == ("Why?", "Why?", "When?", "Why?", "When?", "When?")


def test_a_missing_column_is_named(tmp_path):
    (tmp_path / "q.csv").write_text("Question,Answer\na,b\n")
    with pytest.raises(PromptError, match="lacks the columns Correct Answers, Incorrect Answers"):
        question_answers(tmp_path / "q.csv")
    with pytest.raises(PromptError, match="no file at"):
        question_answers(tmp_path / "none.csv")

"""Readers of attack targets, on tiny made-up files of the published layouts."""

import importlib
import json
from types import SimpleNamespace

import pytest

from steerkit.datasets.hub import rows_of
from steerkit.datasets.targets import (
    AttackItem,
    AttackTarget,
    advbench,
    bold,
    first_example,
    published_first_example,
    toxigen,
    truthfulqa,
)
from steerkit.errors import PromptError
from steerkit.prompts import Prompt


def test_truthfulqa_takes_the_first_wrong_answer_and_keeps_the_right_one(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text(
        "Category,Question,Best Answer,Correct Answers,Incorrect Answers\n"
        "Sky,Which colour is it?,Blue,Blue; Azure,Green; Red\n"
        "Sky,Is it near?,No,No,\n"
    )
    found = truthfulqa(file)
    assert found.name == "truthfulness" and not found.sensitive and len(found) == 1
    item = found.items[0]
    assert (item.adversarial, item.reference, item.clean) == ("Green", "Blue", "")
    assert (item.prompt.group, item.prompt.category) == ("Which colour is it?", "Sky")


def test_the_real_truthfulqa_is_read_whole(shared):
    found = truthfulqa(shared / "data" / "truthfulqa" / "TruthfulQA.csv")
    assert len(found) == 817
    lettered = found.as_choice(seed=1)
    first = sum(i.adversarial == "(A)" for i in lettered.items)
    assert abs(first - 817 / 2) <= 1, "a letter must say nothing"
    for item, choice in zip(found.items, lettered.items, strict=True):
        letter = choice.adversarial[1]
        assert f"({letter}) {item.adversarial}" in choice.prompt.text
        assert choice.prompt.group == item.prompt.group


def test_advbench_is_sensitive_and_grouped_by_row(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('goal,target\nHum a song,"Sure, here is a song"\nWhistle,Sure\nWhistle,Sure\n')
    found = advbench(file)
    assert found.name == "harmfulness" and found.sensitive
    assert [i.adversarial for i in found.items] == ["Sure, here is a song", "Sure"]
    assert [i.prompt.group for i in found.items] == ["row0", "row1"], "a repeat is read once"


LINE = r"- well-known people hum\n- others whistle\n-"


def test_toxigen_examples_end_at_lines_and_not_at_hyphens(tmp_path):
    (tmp_path / "hate_left_handed_1k.txt").write_text(f"{LINE}\n{LINE.replace('people', 'cats')}\n")
    (tmp_path / "hate_tall_1k.txt").write_text("- tall ones sing\\n-\n")
    right, cut = toxigen(tmp_path), toxigen(tmp_path, published_cut=True)
    assert [i.prompt.text for i in right.items] == [
        "well-known people hum",
        "well-known cats hum",
        "tall ones sing",
    ]
    assert [i.prompt.category for i in right.items] == ["left_handed", "left_handed", "tall"]
    assert [i.prompt.text for i in cut.items] == ["well", "tall ones sing\\n"], "the fault's"


def test_toxigen_rows_of_the_hub_layout(tmp_path):
    file = tmp_path / "t.jsonl"
    file.write_text(json.dumps({"text": "a line", "target_group": "tall"}) + "\n")
    found = toxigen(file, adversarial=lambda p: f"{p.text} more")
    assert found.items[0].adversarial == "a line more"


def test_the_cut_differs_only_where_there_are_hyphens():
    assert first_example("- plain\n- next") == published_first_example("- plain\n- next") == "plain"
    assert first_example(LINE) != published_first_example(LINE)


def test_bold_groups_by_name_and_keeps_the_category(tmp_path):
    data = {"Jazz_fans": {"Ann": ["Ann hums", "Ann sings "]}, "Rock_fans": {"Bo": ["Bo drums"]}}
    (tmp_path / "music_prompt.json").write_text(json.dumps(data))
    rows = [{"domain": "d", "category": "Jazz_fans", "name": "Ann", "prompts": ["Ann hums"]}]
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]) + "\n")
    found = bold(tmp_path / "music_prompt.json", adversarial={"Ann hums": "loudly"})
    assert [(i.prompt.text, i.prompt.group, i.prompt.category) for i in found.items] == [
        ("Ann hums", "Ann", "Jazz_fans"),
        ("Ann sings", "Ann", "Jazz_fans"),
        ("Bo drums", "Bo", "Rock_fans"),
    ]
    assert [i.adversarial for i in found.items] == ["loudly", "", ""]
    assert len(bold(tmp_path / "rows.jsonl")) == 1


@pytest.mark.parametrize(
    ("read", "name", "text", "says"),
    [
        (advbench, "a.csv", "goal,answer\nx,y\n", "lacks target of AdvBench; it has: goal, answer"),
        (truthfulqa, "t.csv", "Question\nx\n", "Best Answer/best_answer"),
        (bold, "b.json", '{"a": 1}', "is not a BOLD file"),
        (bold, "c.json", "{}", "no BOLD prompts at"),
        (toxigen, "t.jsonl", '{"x": 1}\n', "expected the columns prompt or text"),
    ],
)
def test_another_layout_is_refused_by_its_columns(tmp_path, read, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(PromptError, match=says):
        read(tmp_path / name)


def test_a_hub_name_without_the_library_says_what_to_install(monkeypatch):
    plain = importlib.import_module

    def missing(name, *rest):
        if name == "datasets":
            raise ImportError(name)
        return plain(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(PromptError, match=r"pip install datasets.*give the file's path"):
        advbench("someone/AdvBench")


def test_a_hub_name_is_read_through_the_library(monkeypatch):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return [{"goal": "hum", "target": "Sure"}]

    plain = importlib.import_module
    fake = SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setattr(
        importlib, "import_module", lambda n, *r: fake if n == "datasets" else plain(n, *r)
    )
    assert advbench("someone/AdvBench").items[0].adversarial == "Sure"
    assert asked == [("someone/AdvBench", None, "train")]


def test_what_the_hub_refuses_is_one_error(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("offline")

    plain = importlib.import_module
    fake = SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setattr(
        importlib, "import_module", lambda n, *r: fake if n == "datasets" else plain(n, *r)
    )
    with pytest.raises(PromptError, match=r"cannot be read: offline"):
        rows_of("a/b", [("x",)], what="it")


def test_a_missing_file_is_not_asked_for_on_the_hub(tmp_path):
    with pytest.raises(PromptError, match=r"no file at nowhere/x\.csv"):
        advbench("nowhere/x.csv")
    with pytest.raises(PromptError, match="no ToxiGen prompts at"):
        toxigen(tmp_path)


def test_a_target_of_prompts_takes_their_own_answers():
    found = AttackTarget.of("mine", [Prompt("hum", answer="la")])
    assert found.items == (AttackItem(Prompt("hum"), "la"),)
    with pytest.raises(PromptError, match="2 prompts need 2 adversarial answers; got 1"):
        AttackTarget.of("mine", ["a", "b"], ["x"])
    with pytest.raises(PromptError, match="lack one of two answers"):
        found.as_choice()
    with pytest.raises(PromptError, match="has no prompts"):
        AttackTarget("mine", ())


def test_a_base_model_gives_the_adversarial_answers(tiny_model):
    target = AttackTarget.of("toxicity", ["the cat was happy", "the dog was sad"])
    found = target.with_answers_of(tiny_model, max_new_tokens=4)
    said = tiny_model.generate([i.prompt for i in target.items], max_new_tokens=4)
    assert [i.adversarial for i in found.items] == [c.text for c in said]

"""Readers of sets about over-refusal and bias: which side is which, on made-up and real files."""

import json

import pytest

from steerkit.datasets import bbq, crows_pairs, stereoset, winobias, xstest
from steerkit.errors import PromptError


def test_xstest_twins_share_a_group(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text(
        "id,prompt,type,label,focus,note\n1,How to kill a process?,homonyms,safe,kill,\n"
        "2,How to kill a friend?,contrast_homonyms,unsafe,kill,\n"
    )
    found = xstest(file)
    assert (found.positive[0].text, found.negative[0].text) == (
        "How to kill a friend?", "How to kill a process?",
    )  # fmt: skip
    assert found.groups == ("kill", "kill") and found.negative[0].category == "homonyms"
    file.write_text("prompt,type,label\nhello,a,maybe\n")
    with pytest.raises(PromptError, match="label 'maybe'"):
        xstest(file)


def test_the_real_xstest_is_read_whole(shared):
    found = xstest(shared / "data" / "xstest" / "xstest_prompts.csv")
    assert (len(found.positive), len(found.negative)) == (200, 250)


def test_rows_against_a_stereotype_are_turned_round(tmp_path):
    file = tmp_path / "c.csv"
    file.write_text(
        "sent_more,sent_less,stereo_antistereo,bias_type\nthey nap,we nap,stereo,age\n"
        "they run,we run,antistereo,age\n"
    )
    found = crows_pairs(file)
    assert [p.text for p in found.positive] == ["they nap", "we run"]
    assert found.paired and found.positive[0].category == "age"
    file.write_text("sent_more,sent_less,stereo_antistereo,bias_type\na,b,both,age\n")
    with pytest.raises(PromptError, match="direction 'both'"):
        crows_pairs(file)


def test_stereoset_in_both_layouts(tmp_path, shared):
    item = {
        "id": "1", "context": "He cooks.", "bias_type": "gender",
        "sentences": [
            {"gold_label": "unrelated", "sentence": "Rain."},
            {"gold_label": "anti-stereotype", "sentence": "He cooks well."},
            {"gold_label": "stereotype", "sentence": "He burns it."},
        ],
    }  # fmt: skip
    file = tmp_path / "dev.json"
    file.write_text(json.dumps({"data": {"intersentence": [item], "intrasentence": [item]}}))
    found = stereoset(file)
    assert [p.text for p in found.positive] == ["He cooks. He burns it.", "He burns it."]
    assert [p.text for p in found.negative] == ["He cooks. He cooks well.", "He cooks well."]
    pairs = stereoset(shared / "data" / "stereoset" / "stereoset-gender.json")
    assert pairs.paired and len(pairs) > 100
    item["sentences"] = item["sentences"][:1]  # type: ignore[index]
    file.write_text(json.dumps({"data": {"intersentence": [item]}}))
    with pytest.raises(PromptError, match="expected a stereotype and an anti-stereotype"):
        stereoset(file)
    file.write_text("{}")
    with pytest.raises(PromptError, match="no StereoSet file"):
        stereoset(file)


def test_winobias_pairs_differ_in_the_pronoun(shared, tmp_path):
    folder = shared / "data" / "winobias"
    files = [folder / f"{side}_stereotyped_type1.txt.dev" for side in ("pro", "anti")]
    found = winobias(*files)
    assert len(found.positive) == 396 and "[" not in found.positive[0].text
    assert found.positive[0].category == "developer"
    changed = [
        sum(a != b for a, b in zip(one.text.split(), other.text.split(), strict=False))
        for one, other in zip(found.positive, found.negative, strict=True)
    ]
    # A few of the published lines differ in more.
    assert min(changed) == 1 and sum(n <= 2 for n in changed) >= 390
    with pytest.raises(PromptError, match="has no numbered sentences"):
        winobias(files[0], folder / "extra_gendered_words.txt")
    (tmp_path / "short.txt").write_text("1 [The cook] ate because [he] was hungry.\n")
    with pytest.raises(PromptError, match="of one type and split"):
        winobias(files[0], tmp_path / "short.txt")


def test_bbq_asks_with_letters(tmp_path):
    row = {
        "context": "Two people met.", "question": "Who was late?", "ans0": "the old man",
        "ans1": "the young man", "ans2": "unknown", "label": 2, "category": "Age",
        "context_condition": "ambig", "question_index": 4,
    }  # fmt: skip
    file = tmp_path / "Age.jsonl"
    file.write_text(json.dumps(row))
    (found,) = bbq(file)
    assert found.answer == "(C)" and found.category == "Age, ambig" and found.group == "Age 4"
    assert found.text.endswith("Who was late?\n(A) the old man\n(B) the young man\n(C) unknown")
    file.write_text(json.dumps({**row, "label": 3}))
    with pytest.raises(PromptError, match="label 3"):
        bbq(file)


@pytest.mark.parametrize("read", [xstest, crows_pairs, stereoset, bbq])
def test_an_absent_set_says_what_to_give(read, tmp_path):
    with pytest.raises(PromptError, match=r"no (contrast|StereoSet) file at"):
        read(tmp_path / "none.json")

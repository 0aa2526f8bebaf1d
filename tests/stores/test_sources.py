"""The same rows, whatever they come in."""

import csv
import json

import datasets
import pytest

import steerkit as sk
from steerkit.errors import PromptError
from steerkit.stores.sources import Unreadable, name_of, rows_of

ROWS = [
    {"text": f"line {i}, \u2028 \u00e9", "n": i, "x": i / 3, "ok": i % 2 == 0} for i in range(7)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("rows")
    (out / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    whole = datasets.Dataset.from_list(ROWS)
    whole.to_parquet(out / "a.parquet")
    whole.save_to_disk(out / "saved")
    datasets.DatasetDict({"train": whole, "test": whole.select([0])}).save_to_disk(out / "dict")
    (out / "parts").mkdir()
    for i in range(7):
        (out / "parts" / f"{i}.jsonl").write_text(json.dumps(ROWS[i]))
    return out


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "saved", "dict", "parts"])
def test_files_and_folders_give_the_same_rows(folder, name):
    assert [dict(row) for row in rows_of(folder / name)] == ROWS
    assert name_of(folder / name) == str(folder / name)


def test_objects_give_the_same_rows(folder):
    whole = datasets.load_from_disk(str(folder / "saved"))
    for given in (ROWS, iter(ROWS), whole, whole.to_iterable_dataset(), {"train": whole}):
        if isinstance(given, dict):
            given = datasets.DatasetDict(given)
        assert [dict(row) for row in rows_of(given)] == ROWS
    assert len(list(rows_of(folder / "dict", split="test"))) == 1


def test_csv_text_and_contrasts(tmp_path):
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "n"])
        writer.writeheader()
        writer.writerow({"text": "two\nlines, quoted", "n": 1})
    assert list(rows_of(tmp_path / "a.csv")) == [{"text": "two\nlines, quoted", "n": "1"}]
    (tmp_path / "a.txt").write_text("one\n\nthree\n")
    assert list(rows_of(tmp_path / "a.txt")) == ["one", "", "three"]
    sides = sk.Contrast.of(["good"], ["bad"], paired=True, name="mood")
    found = list(rows_of(sides))
    assert [(row["prompt"].text, row["label"]) for row in found] == [("good", 1), ("bad", 0)]
    assert found[0]["group"] == found[1]["group"] and name_of(sides) == "mood"


def test_lines_that_are_no_json_are_rows_that_cannot_be_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": \n\xff\n\n"b"\n')
    first, second, third, last = rows_of(tmp_path / "a.jsonl")
    assert first == {"text": "a"} and last == "b"
    assert isinstance(second, Unreadable) and second.reason.startswith("line 2 of a.jsonl:")
    assert isinstance(third, Unreadable) and "utf-8" in third.reason


def test_what_is_no_dataset_says_why(folder, tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    (tmp_path / "data.xml").write_text("<a/>")
    for given, message in (
        (tmp_path / "no", "no dataset at .*no; give a .jsonl"),
        ("./no.jsonl", "no dataset at no.jsonl"),
        (tmp_path / "bad.parquet", "not a readable Parquet file"),
        (tmp_path / "data.xml", "cannot tell what 'data.xml' holds"),
        (tmp_path, "data.xml|holds no"),
        ({"a": [1]}, "got a mapping of a: give one of its values"),
        (7, "got a int"),
    ):
        if given == tmp_path:
            (tmp_path / "bad.parquet").unlink()
        with pytest.raises(PromptError, match=message):
            list(rows_of(given))
    with pytest.raises(PromptError, match="has no split 'dev'; it has train, test"):
        list(rows_of(folder / "dict", split="dev"))


def test_a_dataset_of_the_hub_is_streamed_and_its_absence_explained(monkeypatch):
    asked = []

    def found(*args, **options):
        asked.append((args, options))
        if args[0] != "owner/name":
            raise datasets.exceptions.DatasetNotFoundError("not there\nlong story")
        return datasets.Dataset.from_list(ROWS).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", found)
    assert list(rows_of("owner/name", split="test", config="en")) == ROWS
    assert asked == [(("owner/name", "en"), {"split": "test", "streaming": True})]
    with pytest.raises(PromptError, match=r"'nobody' \(split 'train'\): DatasetNotFoundError: not"):
        rows_of("nobody")

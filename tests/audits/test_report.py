"""Reports: round trips, judging again without a model, and files written whole or not at all."""

import json
import math
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest

from steerkit.audits import Item, Report, Section, audit, read_items
from steerkit.errors import MethodError, OutputError


@pytest.fixture
def report(plain, steered, contrast, direction):
    section = Section(
        "Search", "One.\n\nTwo.", columns=("layer", "AUC"), rows=(("1", "0.9"),), data={"best": 1}
    )
    return audit(
        plain, steered, contrast, directions=direction, texts=["a b c"], sections=[section],
        n_resamples=300, seed=4, progress=False,
    )  # fmt: skip


def numbers(report):
    return [s.to_json() for s in report.scores]


def test_a_report_is_frozen_and_grows_by_copies(report):
    with pytest.raises(FrozenInstanceError):
        report.title = "other"
    longer = report.with_sections(Section("More"))
    assert [s.title for s in longer.sections] == ["Search", "More"] and len(report.sections) == 1


def test_json_round_trip(report, tmp_path):
    path = report.write(tmp_path / "report.json")
    again = Report.load(path)
    assert again.to_json() == report.to_json()
    assert again.scores == report.scores and again.verdict == report.verdict
    assert json.loads(path.read_text())["verdict"] == report.verdict
    assert "NaN" not in path.read_text()


def test_items_round_trip_with_nan(report, tmp_path):
    path = report.write(tmp_path / "items.jsonl")
    again = read_items(path)
    assert [i.to_json() for i in again] == [i.to_json() for i in report.items]
    first = Item.from_json(json.loads(path.read_text().splitlines()[0]))
    assert math.isnan(first.scores["correct"]) and "NaN" not in path.read_text()
    loaded = Report.load(report.write(tmp_path / "r.json"), items=path)
    assert [i.to_json() for i in loaded.items] == [i.to_json() for i in report.items]


def test_judging_again_gives_the_same_numbers(report, tmp_path):
    items, stored = tmp_path / "items.jsonl", tmp_path / "report.json"
    report.write(items)
    report.write(stored)
    again = Report.rejudge(items, report=stored)
    assert numbers(again) == numbers(report)
    assert again.verdict == report.verdict and again.to_json() == report.to_json()
    bare = Report.rejudge(items, seed=4, n_resamples=300)
    assert numbers(bare) == numbers(report)
    assert [(a.name, a.role) for a in bare.arms] == [(a.name, a.role) for a in report.arms]


def test_judging_again_needs_no_model_library(report, tmp_path):
    """In a process of its own: neither torch nor transformers is imported, and all is equal."""
    items = report.write(tmp_path / "items.jsonl")
    report.write(tmp_path / "report.json")
    code = """
import json, sys
from steerkit.audits import Report
again = Report.rejudge(sys.argv[1], report=sys.argv[2])
print(json.dumps([again.to_json()["scores"], again.verdict, str(again)]))
heavy = {"torch", "transformers", "plotly", "transformer_lens"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(items), str(tmp_path / "report.json")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "default"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [report.to_json()["scores"], report.verdict, str(report)]


def test_judging_again_with_another_judge_matcher_and_scorer(report, tmp_path):
    items = report.write(tmp_path / "items.jsonl")
    judge = lambda item: float("need" in item.output)  # noqa: E731
    again = Report.rejudge(items, judge=judge, matcher=lambda t: False, scorer=lambda o, r: 0.5)
    assert again.target == "judge" and "judge" in again.verdict
    assert again.score("judge").estimate.value == 1.0
    assert again.score("judge", arm="plain").estimate.value == 0.0
    assert again.score("refusal", arm="plain").estimate.value == 0.0
    assert again.score("correct", "negative").estimate.value == 0.5
    # What a model measured is not touched.
    assert again.score("kl", "negative") == Report.rejudge(items).score("kl", "negative")
    fewer = Report.rejudge(items, checks=["kl"], target="kl")
    assert set(fewer.checks) == {"kl"}


def test_items_of_two_audits_do_not_mix(report, tmp_path):
    report.write(tmp_path / "report.json")
    other = [Item("elsewhere", 0, "positive", "g", "p")]
    with pytest.raises(OutputError, match="arms elsewhere and the report of plain, steered"):
        Report.rejudge(other, report=tmp_path / "report.json")
    lost = [i for i in report.items if (i.arm, i.index) != ("steered", 3)]
    again = Report.rejudge(lost)
    assert again.score("refusal").prompts == 11


def test_asking_for_a_score_that_is_not_there_says_what_is(report):
    with pytest.raises(MethodError, match="did you mean 'refusal/positive/steered'"):
        report.score("refusl")
    bare = Report("t", not_measured={"kl": "models differ"})
    with pytest.raises(MethodError, match=r"'kl/negative/steered' \(kl: models differ\)"):
        bare.score("kl", "negative")


@pytest.mark.parametrize("suffix", ["html", "json", "md", "jsonl"])
def test_an_unwritable_place_leaves_nothing_behind(report, tmp_path, suffix):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        report.write(blocked / f"audit.{suffix}")
    (tmp_path / f"audit.{suffix}").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        report.write(tmp_path / f"audit.{suffix}")
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"audit.{suffix}", "file"]


def test_a_failure_while_rendering_leaves_the_old_file(report, tmp_path, monkeypatch):
    path = tmp_path / "audit.md"
    path.write_text("old")
    monkeypatch.setattr("steerkit.audits.render.flat", lambda data: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.write(path)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_suffixes_and_missing_items(report, tmp_path):
    with pytest.raises(OutputError, match=r"written as .html, .json, .md, .jsonl; got 'a.htm'"):
        report.write(tmp_path / "a.htm")
    bare = Report.load(report.write(tmp_path / "report.json"))
    with pytest.raises(OutputError, match="holds no items to write"):
        bare.write(tmp_path / "items.jsonl")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no items"),
        ("{}\n", "line 1 of .* is not an audit item"),
        ('{"arm": "plain"', "line 1 of .* is not an audit item"),
    ],
)
def test_broken_items_are_refused(tmp_path, text, words):
    path = tmp_path / "items.jsonl"
    path.write_text(text)
    with pytest.raises(OutputError, match=words):
        read_items(path)
    with pytest.raises(OutputError, match="no items at"):
        read_items(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not valid JSON"),
        ('{"kind": "search"}', "is not an audit report"),
        ("[]", "is not an audit report"),
        ('{"kind": "audit", "format_version": 99}', "format version 99; this steerkit reads up to"),
    ],
)
def test_broken_reports_are_refused(tmp_path, text, words):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(OutputError, match=words):
        Report.load(path)
    with pytest.raises(OutputError, match="no report at"):
        Report.load(tmp_path / "none.json")

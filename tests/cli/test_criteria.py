"""`steerkit criteria`: from a contrast in one pass, or from what capture wrote."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from steerkit.cli import app


def run(*options: object) -> Result:
    return CliRunner().invoke(app, ["criteria", *map(str, options)])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pairs") / "mood.jsonl"
    rows = [
        {"positive": f"the {thing} was {good}", "negative": f"the {thing} was {bad}"}
        for thing in ("cat", "dog", "house", "river", "food")
        for good, bad in zip(
            "happy good loved big".split(), "sad bad hated small".split(), strict=True
        )
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_contrast_gives_a_table_a_figure_and_json(tiny_folder, pairs, tmp_path):
    said = run(
        "-m", tiny_folder, "-c", pairs, "-o", tmp_path, "--positions", "last,mean_prompt",
        "--n-resamples", "20", "--part", "all", "--json",
    )  # fmt: skip
    assert said.exit_code == 0, said.stderr
    data = json.loads(said.stdout)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["criteria.html", "criteria.json"]
    stored = json.loads((tmp_path / "criteria.json").read_text())
    assert stored == {k: v for k, v in data.items() if k != "files"}
    assert {p["position"] for p in data["places"]} == {"last", "mean_prompt"}
    assert len(data["places"]) == 6 and len(data["columns"]) == 18
    assert all(sum(c["chosen"]) == pytest.approx(1) for c in data["columns"])
    page = (tmp_path / "criteria.html").read_text()
    assert "rank agreement" in page and "script src" not in page


def test_captured_files_give_what_one_pass_gives(tiny_folder, pairs, tmp_path):
    files = []
    for position in ("last", "mean_prompt"):
        files.append(tmp_path / f"{position}.safetensors")
        done = CliRunner().invoke(
            app,
            ["capture", "-m", str(tiny_folder), "-c", str(pairs), "--part", "all",
             "--positions", position, "-o", str(files[-1])],
        )  # fmt: skip
        assert done.exit_code == 0, done.stderr
    options = ["--criteria", "fisher,silhouette", "--n-resamples", 0, "--json"]
    captured = run(*files, *options, "-o", tmp_path / "a")
    direct = run(
        "-m", tiny_folder, "-c", pairs, "--part", "all", "--positions", "last,mean_prompt",
        *options, "-o", tmp_path / "b",
    )  # fmt: skip
    one, other = (json.loads(r.stdout) for r in (captured, direct))
    assert one["places"] == other["places"]
    for a, b in zip(one["columns"], other["columns"], strict=True):
        assert a["values"] == pytest.approx(b["values"], rel=1e-5)


def test_people_see_where_each_criterion_is_highest(tiny_folder, pairs, tmp_path):
    shown = run(
        "-m", tiny_folder, "-c", pairs, "-o", tmp_path, "--criteria", "js", "--n-resamples", 5,
        "--part", "all",
    )  # fmt: skip
    assert "Where 2 criteria are highest, of 9 places" in shown.stdout
    assert "js (rms)" in shown.stdout and "first in" in shown.stdout
    # Pairs' divergence does not look at labels: its p is 1.
    assert [line.split()[-2] for line in shown.stdout.splitlines() if " js " in line] == ["1", "1"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "got neither"),
        (["-m", "organism:base"], "got --model"),
        (["some.safetensors", "-m", "organism:base"], "not both"),
        (["some.safetensors"], "some.safetensors"),
    ],
)
def test_wrong_usage_is_explained(options, text, tmp_path):
    result = run(*options, "-o", tmp_path)
    assert result.exit_code == 2
    assert text in " ".join(result.stderr.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


def test_an_unknown_criterion_says_what_was_meant(tiny_folder, pairs, tmp_path):
    result = run("-m", tiny_folder, "-c", pairs, "-o", tmp_path, "--criteria", "silhouete")
    assert result.exit_code == 2 and "did you mean 'silhouette'" in result.stderr

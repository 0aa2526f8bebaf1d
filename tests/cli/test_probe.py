"""`steerkit probe`: from a contrast with an untrained control, or from what capture wrote."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from steerkit.cli import app


def run(*options: object) -> Result:
    return CliRunner().invoke(app, ["probe", *map(str, options)])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pairs") / "mood.jsonl"
    rows = [
        {"positive": f"{who} {thing} was {good}", "negative": f"{who} {thing} was {bad}",
         "category": who}
        for who in ("the", "a")
        for thing in ("cat", "dog", "house", "river", "food", "book")
        for good, bad in (("happy", "sad"), ("good", "bad"))
    ]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


QUICK = ("--n-permutations", 19, "--n-random", 19, "--n-folds", 3, "--layers", "0,2")


def test_a_contrast_gives_a_verdict_a_figure_and_json(bare_folder, pairs, tmp_path):
    said = run("-m", bare_folder, "-c", pairs, "-o", tmp_path, "--seed", 1, *QUICK, "--json")
    assert said.exit_code == 0, said.stderr
    data = json.loads(said.stdout)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["probe.html", "probe.json"]
    stored = json.loads((tmp_path / "probe.json").read_text())
    assert stored == {k: v for k, v in data.items() if k != "files"}
    assert data["provenance"]["sites"] == ["resid_post@0", "resid_post@2"]
    assert data["reads_topic"] is True and "words alone" in data["exposed_by"]
    assert data["untrained"]["auc"]["n"] == data["auc"]["n"] == 24
    assert [c["name"] for c in data["left_out"]["categories"]] == ["a", "the"]
    page = (tmp_path / "probe.html").read_text()
    assert "words alone" in page and "script src" not in page


def test_captured_activations_give_what_one_go_gives(bare_folder, pairs, tmp_path):
    file = tmp_path / "acts.safetensors"
    done = CliRunner().invoke(
        app,
        ["capture", "-m", str(bare_folder), "-c", str(pairs), "--part", "all",
         "--layers", "0,2", "-o", str(file)],
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    quick = QUICK[:-2]
    captured = run(file, "-m", bare_folder, "-o", tmp_path / "a", "--seed", 1, *quick, "--json")
    direct = run(
        "-m", bare_folder, "-c", pairs, "-o", tmp_path / "b", "--seed", 1, *QUICK, "--json"
    )
    one, other = (json.loads(r.stdout) for r in (captured, direct))
    assert {k: v for k, v in one.items() if k != "files"} == {
        k: v for k, v in other.items() if k != "files"
    }
    alone = json.loads(run(file, "-o", tmp_path / "c", *quick, "--no-categories", "--json").stdout)
    assert alone["untrained"] is None and alone["left_out"] is None


def test_people_see_the_verdict_and_the_table(bare_folder, pairs, tmp_path):
    shown = run(
        "-m",
        bare_folder,
        "-c",
        pairs,
        "-o",
        tmp_path,
        "--no-untrained",
        "--methods",
        "ridge",
        *QUICK,
    ).stdout
    flat = " ".join(shown.split())
    assert "reads the topic" in flat and "words alone" in flat and "permuted" in flat


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "got neither"),
        (("-m", "organism:base"), "got --model"),
        (("nothing.safetensors", "-c", "builtin:sentiment"), "not both"),
    ],
)
def test_what_is_missing_or_too_much(options, said, tmp_path):
    failed = run(*options, "-o", tmp_path)
    assert failed.exit_code == 2 and said in " ".join(failed.stderr.split())
    assert not any(tmp_path.iterdir())

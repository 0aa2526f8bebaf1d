"""`steerkit redteam`, on the organism."""

import json

import pytest
from typer.testing import CliRunner

from steerkit.cli import app
from steerkit.datasets import refusal


def run(*options):
    return CliRunner().invoke(app, ["redteam", *map(str, options)])


@pytest.mark.parametrize("command", ["attack", "detect"])
def test_every_help_teaches_by_examples(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert result.stdout.count(f"steerkit redteam {command}") >= 3
    assert "Examples:" in result.stdout and "--json" in result.stdout


def test_an_attack_writes_numbers_and_no_texts(tmp_path):
    result = run(
        "attack", "-m", "organism:aligned", "--target", "harmfulness", "--data", "builtin:requests",
        "--strengths=-1.2", "--n-random", 2, "--limit", 40, "--max-new-tokens", 10,
        "--faults", "js_repo", "-o", tmp_path / "a", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["faults"] == ["js_repo"] and said["rows"][0]["strength"] == -1.2
    assert said["rows"][0]["success"]["value"] > said["clean"]["value"]
    assert json.loads((tmp_path / "a" / "attack.json").read_text())["kind"] == "activation_attack"
    written = "".join((tmp_path / "a" / f).read_text() for f in ("attack.json", "items.jsonl"))
    assert all(p.text not in written for p in refusal("held_out", 40).positive)
    assert "<!doctype html>" in (tmp_path / "a" / "attack.html").read_text()


def test_a_detector_is_fitted_measured_kept_and_used(tmp_path):
    first = run(
        "detect", "-m", "organism:aligned", "--known", "builtin:requests", "--limit", 30,
        "--strengths", "0.5", "-o", tmp_path / "d", "--json",
    )  # fmt: skip
    assert first.exit_code == 0, first.stderr
    power = json.loads(first.stdout)
    assert power["kind"] == "detection_power"
    assert {r["attack"] for r in power["rows"]} == {"none", "add", "ablate", "rotate", "add random"}
    kept = tmp_path / "d" / "detector.safetensors"
    for suspect, steered in (("organism:aligned", False), ("organism:base", True)):
        result = run(
            "detect", "-m", "organism:aligned", "--known", kept, "--suspect", suspect,
            "-o", tmp_path / suspect[9:], "--json",
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["steered"] is steered


def test_prompts_come_from_a_plain_file(tmp_path):
    file = tmp_path / "known.txt"
    file.write_text("\n".join(p.text for p in refusal("train", 15).prompts))
    result = run(
        "detect", "-m", "organism:aligned", "--known", file, "--suspect", "organism:compromised",
        "-o", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "not the clean model" in result.stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--target", "truth", "--data", "x.csv"], "no target named 'truth'"),
        (["--target", "harmfulness", "--data", "x.csv"], "no file at x.csv"),
        (
            ["--target", "harmfulness", "--data", "builtin:requests", "--faults", "js"],
            "no published fault named 'js'",
        ),
    ],
)
def test_wrong_input_is_explained(tmp_path, options, says):
    result = run("attack", "-m", "organism:aligned", *options, "-o", tmp_path / "a", "--json")
    assert result.exit_code == 2
    assert says in json.loads(result.stdout)["error"]["message"]
    assert not (tmp_path / "a").exists()

"""The single steps, each on what the one before it wrote, on a tiny random model."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from steerkit.cli import app

GOOD = "happy good loved big sun cake film book".split()
BAD = "sad bad hated small rain bomb bird tree".split()
FAST = ["--operator", "add", "--objective", "projection", "--n-random", "5", "--max-kl", "50"]


def run(*options: str | Path) -> Result:
    return CliRunner().invoke(app, [str(option) for option in options])


def answer(*options: str | Path) -> dict:
    result = run(*options, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pairs") / "mood.jsonl"
    rows = [
        {"positive": f"the {thing} was {good}", "negative": f"the {thing} was {bad}"}
        for thing in ("cat", "dog", "house", "river", "food")
        for good, bad in zip(GOOD, BAD, strict=True)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, pairs: Path) -> Path:
    """A folder in which capture, extract and search have been run."""
    out = tmp_path_factory.mktemp("steps")
    answer("capture", "-m", tiny_folder, "-c", pairs, "-o", out / "a.safetensors")
    answer(
        "extract", out / "a.safetensors", "-o", out / "d.safetensors",
        "--methods", "mean_difference",
    )  # fmt: skip
    found = answer(
        "search", out / "d.safetensors", "-m", tiny_folder, "-c", pairs, "-o", out, *FAST
    )
    assert found["found"]
    return out


def test_search_moves_the_projection_down_on_unseen_prompts(folder):
    sweep = json.loads((folder / "sweep.json").read_text())
    final = sweep["final"]
    assert final["steered"]["high"] < final["plain"]["low"]
    assert sweep["best"]["operator"] == "add" and sweep["best"]["strength"] < 0


def test_steer_shows_both_and_strength_0_is_the_plain_model(folder, tiny_folder, tmp_path):
    steering = folder / "steering.safetensors"
    out = tmp_path / "answers.jsonl"
    said = answer("steer", steering, "-m", tiny_folder, "-p", "the cat was happy", "-o", out)
    (row,) = said["answers"]
    assert row["prompt"] == "the cat was happy"
    assert json.loads(out.read_text()) == row
    still = answer(
        "steer", steering, "-m", tiny_folder, "-p", "the cat was happy", "--strength", "0"
    )
    assert still["answers"][0]["steered"] == still["answers"][0]["plain"] == row["plain"]


def test_audit_writes_a_report_that_agrees_with_its_json(folder, tiny_folder, pairs, tmp_path):
    out = tmp_path / "audit"
    said = answer(
        "audit", folder / "steering.safetensors", "-m", tiny_folder, "-c", pairs,
        "--target", "projection", "-o", out, "--max-new-tokens", "4",
    )  # fmt: skip
    assert sorted(p.name for p in out.iterdir()) == [
        "items.jsonl", "report.html", "report.json", "report.md",
    ]  # fmt: skip
    assert json.loads((out / "report.json").read_text())["scores"] == said["scores"]
    assert "Steering lowered projection on positive prompts" in said["verdict"]


def test_nothing_within_the_guard_is_exit_code_3(folder, tiny_folder, pairs, tmp_path):
    strict = [*FAST[:-1], "1e-9"]
    out = tmp_path / "none"
    result = run(
        "search", folder / "d.safetensors", "-m", tiny_folder, "-c", pairs, "-o", out, *strict,
        "--json",
    )  # fmt: skip
    assert result.exit_code == 3
    assert json.loads(result.stdout)["found"] is False
    assert [p.name for p in out.iterdir()] == ["sweep.json"]


def test_the_audit_sees_prompts_that_the_other_steps_did_not(folder, tiny_folder, pairs, tmp_path):
    out = tmp_path / "audit"
    answer(
        "audit", folder / "steering.safetensors", "-m", tiny_folder, "-c", pairs,
        "--target", "projection", "-o", out, "--max-new-tokens", "2",
    )  # fmt: skip
    from steerkit.activations import Activations

    fitted = {p.text for p in Activations.load(folder / "a.safetensors").prompts}
    searched = {
        i["prompt"] for i in json.loads((folder / "sweep.json").read_text())["final"]["items"]
    }
    audited = {
        json.loads(line)["prompt"] for line in (out / "items.jsonl").read_text().splitlines()
    }
    assert audited and not audited & fitted and not audited & searched


def test_steering_made_on_another_model_is_refused(folder):
    steering = folder / "steering.safetensors"
    result = run("steer", steering, "-m", "organism:base", "-p", "the cat")
    assert result.exit_code == 2
    assert "this direction has width 32 (tiny-llama)" in " ".join(result.stderr.split())


def test_another_model_of_the_same_width_is_a_choice(folder, tiny_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other-llama"
    shutil.copytree(tiny_folder, other)
    weights = load_file(other / "model.safetensors")
    save_file(
        {k: v * 1.01 for k, v in weights.items()}, other / "model.safetensors", {"format": "pt"}
    )
    steering = folder / "steering.safetensors"
    result = run("steer", steering, "-m", other, "-p", "the cat")
    assert result.exit_code == 2
    assert "was taken on tiny-llama" in " ".join(result.stderr.replace("│", " ").split())
    assert run("steer", steering, "-m", other, "-p", "the cat", "--transfer").exit_code == 0

"""`steerkit calibrate`: directions in, the same directions with their strengths out."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from steerkit.cli import app
from steerkit.direction import Directions

GOOD = "happy good loved big sun cake film book".split()
BAD = "sad bad hated small rain bomb bird tree".split()


def run(*options: str | Path) -> Result:
    return CliRunner().invoke(app, [str(option) for option in options])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> tuple[Path, Path, Path]:
    """A model, a contrast and directions of it."""
    out = tmp_path_factory.mktemp("calibrate")
    pairs = out / "mood.jsonl"
    rows = [
        {"positive": f"the {thing} was {good}", "negative": f"the {thing} was {bad}"}
        for thing in ("cat", "dog", "house", "river", "food")
        for good, bad in zip(GOOD, BAD, strict=True)
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in (
        ["capture", "-m", tiny_folder, "-c", pairs, "-o", out / "a.safetensors"],
        ["extract", out / "a.safetensors", "-o", out / "d.safetensors",
         "--methods", "mean_difference"],
    ):  # fmt: skip
        assert run(*step).exit_code == 0
    return tiny_folder, pairs, out / "d.safetensors"


def test_strengths_are_found_shown_and_kept_with_the_directions(files, tmp_path):
    model, pairs, directions = files
    done = run("calibrate", directions, "-m", model, "-c", pairs, "--kl", "0.05", "-o", tmp_path,
               "--json")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["met"] == 3 and len(said["calibrations"]) == 3
    kept = Directions.load(tmp_path / "calibrated.safetensors")
    for direction, one in zip(kept, said["calibrations"], strict=True):
        (record,) = direction.calibrations
        assert record.strength == one["strength"] < 0  # the default aim is to reduce
        assert one["fitted"] == pytest.approx(0.05, rel=0.011)
    assert json.loads((tmp_path / "calibration.json").read_text())["rounds"] == said["rounds"]
    again = run("calibrate", directions, "-m", model, "-c", pairs, "-o", tmp_path)
    assert again.exit_code == 2 and "pass --force" in again.stderr


def test_a_budget_that_nothing_meets_exits_with_3_and_says_so(files, tmp_path):
    model, pairs, directions = files
    done = run("calibrate", directions, "-m", model, "-c", pairs, "--operator", "ablate",
               "--kl", "500", "-o", tmp_path)  # fmt: skip
    assert done.exit_code == 3
    assert "cannot be reached" in " ".join(done.stdout.split())


def test_a_wrong_statistic_is_refused(files, tmp_path):
    model, pairs, directions = files
    done = run("calibrate", directions, "-m", model, "-c", pairs, "--statistic", "p59",
               "-o", tmp_path)  # fmt: skip
    assert done.exit_code == 2 and "did you mean 'p95'" in " ".join(done.stderr.split())


def test_what_was_written_is_verified_on_the_same_prompts_and_on_others(files, tmp_path):
    model, pairs, directions = files
    given = ["-m", model, "-c", pairs, "-o", tmp_path]
    assert run("calibrate", directions, *given, "--kl", "0.05").exit_code == 0
    kept = tmp_path / "calibrated.safetensors"
    done = run("calibrate", kept, *given, "--verify", "--json")
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["agree"] and all(v["same_prompts"] for v in said["verified"])
    assert json.loads((tmp_path / "verified.json").read_text()) == said["verified"]
    others = run("calibrate", kept, *given, "--verify", "--part", "audit", "--force", "--json")
    assert not any(v["same_prompts"] for v in json.loads(others.stdout)["verified"])
    none = run("calibrate", directions, *given, "--verify", "--force")
    assert none.exit_code == 2 and "holds a calibrated strength" in " ".join(none.stderr.split())

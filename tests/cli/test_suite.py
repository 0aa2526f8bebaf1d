"""`steerkit audit --suite` from the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from steerkit.cli import app
from steerkit.suites import Material


def run(*options: object) -> Result:
    return CliRunner().invoke(app, ["audit", *map(str, options)])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    contrast = Material.of_organisms(24).contrasts["refusal"]
    rows = [
        {"text": p.text, "label": label, "answer": p.answer, "group": p.group}
        for p, label in zip(contrast.prompts, contrast.labels, strict=True)
    ]
    (folder / "refusal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_questions_are_asked_of_given_prompts_and_kept(data: Path, tmp_path: Path) -> None:
    options = ["-m", "organism:compromised", "--against", "organism:aligned", "--data", data]
    first = run(*options, "--suite", "behaviour", "-o", tmp_path, "--json")
    assert first.exit_code == 0, first.stderr
    found = json.loads(first.stdout)
    assert found["findings"]["refusal"]["answer"] == "no"
    assert found["findings"]["change"]["answer"] == "yes"
    assert set(found["not_measured"]) == {
        "over_refusal", "censorship", "association", "parity",
    }  # fmt: skip
    assert {p.name for p in tmp_path.iterdir()} == {
        "findings", "items.jsonl", "report.html", "report.json", "report.md",
    }  # fmt: skip
    again = run(*options, "--suite", "refusal,change", "-o", tmp_path, "--json")
    kept = json.loads(again.stdout)["findings"]
    assert kept["refusal"] == {**found["findings"]["refusal"], "p_adjusted": None}
    assert "Does it refuse" in run(*options, "--suite", "refusal,change", "-o", tmp_path).stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--suite", "behavior", "-m", "organism:base"], "did you mean 'behaviour'"),
        (["--suite", "behaviour", "-m", "organism:base", "--data", "nowhere"], "no folder nowhere"),
        (["-m", "organism:base"], "needs a steering file"),
        (["some.safetensors"], "needs --contrast"),
    ],
)
def test_wrong_usage_says_what_to_do(options: list[str], said: str, tmp_path: Path) -> None:
    found = run(*options, "-o", tmp_path / "out")
    assert found.exit_code == 2 and said in " ".join(found.stderr.split())
    assert not (tmp_path / "out" / "report.html").exists()


def test_a_suite_needs_prompts_for_other_models(tiny_folder: Path, tmp_path: Path) -> None:
    found = run("--suite", "behaviour", "-m", tiny_folder, "-o", tmp_path)
    assert found.exit_code == 2 and "is no shipped organism" in " ".join(found.stderr.split())

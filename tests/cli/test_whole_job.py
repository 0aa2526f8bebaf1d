"""`run` and `demo`, on the tiny random model and on a shipped organism."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from steerkit import pipeline
from steerkit.cli import app
from steerkit.commands import demo as demo_command
from steerkit.datasets import refusal
from steerkit.pipeline import FILES


def run(*options: str | Path) -> Result:
    return CliRunner().invoke(app, [str(option) for option in options])


@pytest.fixture(scope="module", autouse=True)
def fewer_draws() -> Iterator[None]:
    """Draws say how small a p can be, requests how narrow an interval: nothing here hangs on it.

    Of methods there is one: each makes the search as long once more, and all find the refusal.
    """
    few: dict[str, Any] = {"n_random": 3, "null_budget": 1, "n_permutations": 3}
    few["methods"] = ("mean_difference",)
    settings = pipeline.Settings

    def smaller(**given: Any) -> pipeline.Settings:
        return settings(**{**given, **few})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "Settings", smaller)
        patch.setattr(demo_command, "HELD_OUT", 80)
        yield


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("demo") / "out"
    result = run("demo", "--out", out, "--size", "60", "--json")
    assert result.exit_code == 0, result.stderr
    return out, json.loads(result.stdout)


def test_the_demo_writes_everything_it_names(demo):
    out, said = demo
    assert {p.name for p in out.iterdir()} == set(FILES)
    assert said["files"] == [str(out / name) for name in FILES]


def test_the_demo_takes_refusal_away_on_unseen_requests(demo):
    _, said = demo
    value = {(s["check"], s["side"], s["arm"]): s["estimate"]["value"] for s in said["scores"]}
    assert value["refusal", "positive", "plain"] >= 0.95
    assert value["refusal", "positive", "steered"] <= 0.1
    assert "Steering lowered refusal on positive prompts" in said["verdict"]


def test_the_demo_report_stands_alone(demo):
    page = (demo[0] / "report.html").read_text()
    for title in ("Where it works", "Against chance", "The directions", "The prompts"):
        assert f">{title}</h2>" in page
    assert "<script src=" not in page and "<link" not in page
    assert 'name="viewport"' in page


def test_the_direction_artefact_is_refused_on_another_organism(demo):
    import steerkit as sk

    with pytest.raises(sk.SteerkitError, match="was taken on organism:aligned"):
        sk.Direction.load(demo[0] / "direction.safetensors", model=sk.load("organism:base"))


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("requests") / "requests.jsonl"
    asked = refusal("train", 60)
    rows = [
        {"text": p.text, "label": label, "answer": p.answer, "group": p.group}
        for p, label in zip(asked.prompts, asked.labels, strict=True)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def quick(out: Path, requests: Path, *options: str) -> Result:
    return run(
        "run", "-m", "organism:aligned", "-c", requests, "-o", out, "--methods", "mean_difference",
        "--n-random", "9", "--max-new-tokens", "12", "--layers", "1-2", *options,
    )  # fmt: skip


def numbers(folder: Path) -> dict:
    report = json.loads((folder / "report.json").read_text())
    return {key: report[key] for key in ("scores", "sections", "verdict", "provenance")}


def test_a_seed_gives_the_same_numbers_again_and_another_gives_others(requests, tmp_path):
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        assert quick(tmp_path / name, requests, "--seed", seed).exit_code == 0
    assert numbers(tmp_path / "a") == numbers(tmp_path / "b")
    assert numbers(tmp_path / "a")["scores"] != numbers(tmp_path / "c")["scores"]


def test_nothing_within_the_guard_is_said_and_is_code_3(requests, tmp_path):
    result = quick(tmp_path / "out", requests, "--max-kl", "1e-9")
    assert result.exit_code == 3
    assert "none within the guard" in result.stdout
    assert {p.name for p in (tmp_path / "out").iterdir()} == set(FILES[:3])


@pytest.mark.parametrize("step", ["steerkit.searches.search", "steerkit.audits.audit"])
def test_an_interrupted_run_leaves_nothing(requests, tmp_path, monkeypatch, step):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(step, interrupt)
    result = quick(tmp_path / "out", requests)
    assert result.exit_code == 130
    assert "nothing half-written is left" in result.stderr
    assert not (tmp_path / "out").exists()

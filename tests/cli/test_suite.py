"""`steerkit audit --suite` from the command line."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from steerkit.cli import app
from steerkit.interventions import Ablate, save_steering
from steerkit.suites import SETS, SUITES, Material
from steerkit.suites.material import ROLES
from steerkit.suites.registry import EXAMINATIONS


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
        (["a.st", "--steering", "b.st"], "two steering files are given, a.st and --steering b.st"),
        (["a.st", "-c", "builtin:truth_topical", "--data", "x"], "--data goes with --suite"),
        (["a.st", "-c", "builtin:truth_topical", "--against", "x"], "--against goes with --suite"),
        (["--suite", "behaviour", "--data", "xtest=x.csv"], "did you mean 'xstest'"),
        (
            ["--suite", "refusal,", "--data", "xstest=absent.csv"],
            "is to be had from|to be had from",
        ),
        (["--suite", "behaviour", "--data", "groups=a", "--data", "groups=b"], "is given twice"),
        (["--suite", "behaviour", "--data", "name=x"], "'name=x' names no role"),
    ],
)
def test_wrong_usage_says_what_to_do(options: list[str], said: str, tmp_path: Path) -> None:
    found = run(*options, "-o", tmp_path / "out")
    assert found.exit_code == 2 and re.search(said, " ".join(found.stderr.split()))
    assert not (tmp_path / "out" / "report.html").exists()


def test_a_suite_needs_prompts_for_other_models(tiny_folder: Path, tmp_path: Path) -> None:
    found = run("--suite", "behaviour", "-m", tiny_folder, "-o", tmp_path)
    assert found.exit_code == 2 and "is no shipped organism" in " ".join(found.stderr.split())


def test_the_help_and_the_list_say_what_there_is() -> None:
    shown = " ".join(run("--help").stdout.split())
    for suite in SUITES:
        assert re.search(rf"\b{suite} (what|which|all)", shown), f"--help says what {suite} asks"
    listed = json.loads(run("--suite", "list", "--json").stdout)
    assert set(listed["suites"]) == set(SUITES) and set(listed["roles"]) == set(ROLES)
    assert set(listed["examinations"]) == set(EXAMINATIONS.names())
    assert set(listed["public_sets"]) == set(SETS)
    text = " ".join(run("--suite", "list").stdout.split())
    for name in EXAMINATIONS.names():
        assert name in text and " ".join(EXAMINATIONS[name].question.split()[:3]) in text


def test_steering_is_an_argument_or_an_option_and_sets_play_their_roles(tmp_path: Path) -> None:
    import steerkit as sk

    contrast = Material.of_organisms(12, split="train").contrasts["refusal"]
    acts = sk.capture(sk.load("organism:aligned"), contrast, progress=False)
    operator = Ablate(sk.extract(acts, n_folds=0, progress=False).at(2))
    file = save_steering(tmp_path / "steering.safetensors", operator)
    (tmp_path / "xstest.csv").write_text(
        "prompt,type,label,focus\n"
        + "".join(
            f'"{p.text}",drawn,{label},{p.group[:9]}\n'
            for label, side in (("unsafe", contrast.positive), ("safe", contrast.negative))
            for p in side
        )
    )
    options = ["--suite", "change", "--data", f"xstest={tmp_path / 'xstest.csv'}",
               "--max-new-tokens", 12, "--json"]  # fmt: skip
    by_option = json.loads(run("--steering", file, *options, "-o", tmp_path / "a").stdout)
    by_argument = json.loads(run(file, *options, "-o", tmp_path / "b").stdout)
    assert by_option["findings"] == by_argument["findings"]
    lost = by_option["findings"]["change"]["estimates"]
    assert lost["refused, harmful requests, steered less model"]["high"] < 0
    assert "refused, look-alikes, steered less model" in lost
    assert set(by_option["provenance"]["material"]) == {"name", "refusal", "lookalikes"}

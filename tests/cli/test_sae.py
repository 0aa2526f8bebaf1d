"""`steerkit sae`, on the organism."""

import json

import pytest
from typer.testing import CliRunner

import steerkit as sk
from steerkit.cli import app
from steerkit.datasets import refusal
from steerkit.sae import load_sae, shipped


def run(*options):
    return CliRunner().invoke(app, ["sae", *map(str, options)])


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = [{"text": p.text, "answer": p.answer, "template": "raw"} for p in shipped.held_out()]
    file.write_text("\n".join(json.dumps(row) for row in rows[:150]))
    return file


@pytest.fixture(scope="module")
def contrast(tmp_path_factory):
    file = tmp_path_factory.mktemp("contrast") / "requests.jsonl"
    both = refusal("held_out", n=60, seed=3)
    rows = [
        {"text": p.text, "label": label, "group": p.group}
        for p, label in zip(both.prompts, both.labels, strict=True)
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


@pytest.mark.parametrize("command", ["train", "check", "find", "show"])
def test_every_help_teaches_by_examples(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert result.stdout.count(f"steerkit sae {command}") >= 3
    assert "Examples:" in result.stdout and "--json" in result.stdout


def test_check_measures_the_shipped_one(texts):
    result = run("check", "-m", "organism:aligned", "--texts", texts, "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["checks"]["variance_explained"] > 0.9 and said["checks"]["problems"] == []
    assert said["quality"]["loss_recovered"]["value"] > 0.9
    refused = run("check", "-m", "organism:base", "--texts", texts)
    assert refused.exit_code == 2 and "trained on" in refused.stderr


def test_find_writes_features_and_directions(contrast, tmp_path):
    result = run(
        "find", "-m", "organism:aligned", "-c", contrast, "--n", 3, "--n-permutations", 99,
        "-o", tmp_path / "f", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["features"][0]["auc"]["value"] > 0.9 and said["search"]["p"] <= 0.02
    directions = sk.Directions.load(
        tmp_path / "f" / "directions.safetensors", model=sk.load("organism:aligned")
    )
    assert directions[0].method == "sae_feature"
    page = (tmp_path / "f" / "features.html").read_text()
    assert f"Feature {said['features'][0]['feature']}" in page and "plotly" in page


def test_show_writes_cards(texts, tmp_path):
    result = run(
        "show", "-m", "organism:aligned", "--texts", texts, "--features", "14,11",
        "-o", tmp_path / "s", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert [card["feature"] for card in said["features"]] == [14, 11]
    assert (tmp_path / "s" / "cards.html").read_text().count("<section>") == 2
    wrong = run("show", "-m", "organism:aligned", "--texts", texts, "--features", "x")
    assert wrong.exit_code == 2 and "features are numbers" in wrong.stderr


def test_train_saves_what_load_sae_loads(texts, tmp_path):
    result = run(
        "train", "-m", "organism:aligned", "--texts", texts, "--site", "resid_post@2",
        "--n-tokens", 4096, "--d-sae", 64, "--k", 4, "-o", tmp_path / "t", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    found = load_sae(tmp_path / "t", model=sk.load("organism:aligned"))
    assert said["d_sae"] == found.d_sae == 64 and str(found.site) == "resid_post@2"
    again = run("train", "-m", "organism:aligned", "--texts", texts, "--site", 2,
                "-o", tmp_path / "t")  # fmt: skip
    assert again.exit_code == 2 and "exists" in again.stderr

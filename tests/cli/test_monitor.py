"""`steerkit monitor`: recall at a rate of false positives, from files."""

import json

import pytest
from typer.testing import CliRunner

import steerkit as sk
from steerkit.cli import app
from steerkit.datasets import refusal


def run(*options):
    return CliRunner().invoke(app, ["monitor", *map(str, options)])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("monitor")
    model = sk.load("organism:aligned")
    acts = sk.capture(model, refusal("train", n=40), layers=[1, 2], progress=False)
    sk.extract(
        acts, "mean_difference", concept="refusal", n_permutations=9, n_random=9, progress=False
    ).save(folder / "directions.safetensors")
    both = refusal("held_out", n=260, seed=3)
    rows = [
        {"text": p.text, "label": y, "group": p.group}
        for p, y in zip(both.prompts, both.labels, strict=True)
    ]
    (folder / "other.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    rewrites = [{"text": p.text, "rewrite": ["please , " + p.text]} for p in both.positive]
    rewrites.append({"text": "of another part", "rewrite": "what is not here"})
    (folder / "rewrites.jsonl").write_text("\n".join(json.dumps(row) for row in rewrites))
    return folder


def test_it_writes_recall_false_positives_and_paraphrases(files, tmp_path):
    result = run(
        files / "directions.safetensors", "-c", files / "other.jsonl", "--part", "all",
        "--paraphrases", files / "rewrites.jsonl", "--layers", 2, "--n-random", 19,
        "-o", tmp_path / "m", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["recall"]["value"] > 0.9 and said["bound"] == "not resolved"
    assert said["paraphrase"]["recall"]["value"] > 0.9
    assert said["monitor"]["site"] == "resid_post@2" and said["monitor"]["fpr"] == 0.01
    stored = json.loads((tmp_path / "m" / "monitor.json").read_text())
    assert stored == {k: v for k, v in said.items() if k != "files"}
    page = (tmp_path / "m" / "monitor.html").read_text()
    assert "recall at a false positive rate of 0.01" in page and "<script src" not in page


def test_too_few_negatives_exit_with_3_and_say_how_many_it_takes(files, tmp_path):
    result = run(
        files / "directions.safetensors", "-c", files / "other.jsonl", "--limit", 40,
        "--n-random", 9, "-o", tmp_path / "m",
    )  # fmt: skip
    assert result.exit_code == 3
    assert "takes 99 at least" in " ".join(result.stdout.split())


def test_wrong_rewrites_are_explained(files, tmp_path):
    wrong = tmp_path / "wrong.jsonl"
    for row, text in (({"text": "a"}, "needs 'text'"), ({"text": "a", "rewrite": "b"}, "no row")):
        wrong.write_text(json.dumps(row))
        result = run(
            files / "directions.safetensors", "-c", files / "other.jsonl", "--part", "all",
            "--paraphrases", wrong, "-o", tmp_path / "m",
        )  # fmt: skip
        assert result.exit_code == 2 and text in " ".join(result.stderr.split())
        assert not (tmp_path / "m").exists()

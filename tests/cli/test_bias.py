"""`steerkit bias`: from contrasts of words in templates to a ranking, a figure and JSON."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import steerkit as sk
from steerkit.cli import app
from steerkit.datasets.occupations import occupation_concepts, sex_concepts
from steerkit.prompts import Contrast

FEW = ("--n-resamples", 5, "--n-permutations", 19, "--n-random", 19)


def run(*options: object) -> Result:
    return CliRunner().invoke(app, ["bias", *map(str, options)])


def write(contrast: Contrast, file: Path) -> Path:
    rows = [
        {"positive": p.text, "negative": n.text, "group": p.group, "template": "raw"}
        for p, n in zip(contrast.positive, contrast.negative, strict=True)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bias")
    women, men = sex_concepts(n=4)
    jobs = {name: occupation_concepts(n=2)[name] for name in ("carpenter", "singer")}
    every = {"women": women, "men": men, **jobs}
    return {name: write(c, folder / f"{name}.jsonl") for name, c in every.items()}


def asked(files: dict[str, Path]) -> tuple[object, ...]:
    return (
        "-m", "organism:aligned", "-c", files["carpenter"], "-c", files["singer"],
        "--reference", files["women"], "--reference", files["men"], "--template", "raw",
    )  # fmt: skip


def test_contrasts_give_a_ranking_a_figure_and_json(files, tmp_path):
    said = run(*asked(files), *FEW, "--layers", "1-2", "-o", tmp_path, "--json")
    assert said.exit_code == 0, said.stderr
    data = json.loads(said.stdout)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bias.html", "bias.json"]
    stored = json.loads((tmp_path / "bias.json").read_text())
    assert stored == {k: v for k, v in data.items() if k != "files"}
    assert data["references"] == ["women", "men"] and len(data["sites"]) == 2
    signed = {row["target"]: row["signed"]["value"] for row in data["targets"]}
    assert signed["carpenter"] > 0 > signed["singer"]
    model = sk.load("organism:aligned")
    read = {
        name: Contrast.read(file).map(lambda p: replace(p, template="raw"))
        for name, file in files.items()
    }
    found = sk.bias_lens(
        model, {n: read[n] for n in ("carpenter", "singer")}, (read["women"], read["men"]),
        sites=[1, 2], n_resamples=0, n_permutations=0, n_random=0, progress=False,
    )  # fmt: skip
    assert signed["singer"] == pytest.approx(found["singer"].signed.value, rel=1e-5)
    assert "script src" not in (tmp_path / "bias.html").read_text()


def test_codes_of_an_autoencoder_stand_beside_plain_cavs(files, tmp_path):
    shown = run(*asked(files), *FEW, "--sae", "sae:organism", "-o", tmp_path)
    assert shown.exit_code == 0, shown.stderr
    assert "SAE codes, perturbed" in shown.stdout and "carpenter" in shown.stdout
    data = json.loads((tmp_path / "bias.json").read_text())
    assert data["sites"] == ["resid_post@1"] and data["ablation"]["representation"] == "CAV"
    assert 0 < data["targets"][0]["active"][0] < 512


def test_bad_input_is_told_in_a_panel(files, tmp_path):
    ask = ("-m", "organism:aligned", "-o", tmp_path)
    single = run(*ask, "-c", files["singer"], "--reference", files["men"])
    assert single.exit_code == 2 and "give --reference twice" in single.stderr
    same = ("--reference", files["men"])
    twice = run(*ask, "-c", files["singer"], *same, *same)
    assert twice.exit_code == 2 and "two contrasts are called 'men'" in twice.stderr
    assert not list(tmp_path.iterdir())

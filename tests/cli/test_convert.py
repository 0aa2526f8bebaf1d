"""`steerkit convert`: from one tool's file to another's, and what is said about it."""

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner, Result

import steerkit as sk
from steerkit.cli import app
from steerkit.direction import Directions
from steerkit.formats import read_vectors
from steerkit.interventions import save_steering


def run(*options: object) -> Result:
    return CliRunner().invoke(app, ["convert", *map(str, options)])


def shown(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


@pytest.fixture
def directions(tiny_model) -> Directions:
    generator = torch.Generator().manual_seed(0)

    def one(layer: int, method: str) -> sk.Direction:
        unit = torch.nn.functional.normalize(torch.randn(32, generator=generator), dim=0)
        return sk.Direction(
            unit=unit, scale=1.7, site=sk.Site(layer), method=method, concept="joy",
            positive_mean=1.2, negative_mean=-0.5, model=tiny_model.info, pooling="last",
            polarity=1,
        )  # fmt: skip

    return Directions(tuple(one(n, m) for n in range(3) for m in ("mean_difference", "pca")))


def test_directions_to_a_control_vector_and_on(directions, tiny_folder, tiny_model, tmp_path):
    source, gguf = tmp_path / "d.safetensors", tmp_path / "joy.gguf"
    directions.save(source)
    said = run(source, "-o", gguf, "--methods", "pca", "--json")
    assert said.exit_code == 0, said.stderr
    data = json.loads(said.stdout)
    assert data["format"] == "gguf" and data["sites"] == ["resid_post@1", "resid_post@2"]
    assert [loss["what"] for loss in data["losses"] if loss["dropped"]] == ["resid_post@0"]
    steering = tmp_path / "steering.safetensors"
    back = run(gguf, "-o", steering, "--to", "steering", "-m", tiny_folder)
    assert back.exit_code == 0, back.stderr
    assert "gguf to steering" in back.stdout and "+1 (checked)" in back.stdout
    answers = CliRunner().invoke(
        app,
        ["steer", str(steering), "-m", str(tiny_folder), "-p", "the cat", "--max-new-tokens", "3"],
    )
    assert answers.exit_code == 0, answers.stderr
    for found in read_vectors(gguf, model=tiny_model):
        assert torch.equal(found.vector, directions.at(found.site, "pca").vector)


def test_people_see_what_is_dropped_and_converted(directions, tmp_path):
    Directions((directions[0], directions[2].at("resid_pre@2"))).save(tmp_path / "d.safetensors")
    said = run(tmp_path / "d.safetensors", "-o", tmp_path / "v.gguf")
    text = shown(said.stdout)
    assert "steerkit to gguf" in text and "DROPPED: resid_post@0: llama.cpp refuses" in text
    assert "converted: resid_pre@2 is written as direction.1: the same stream" in text
    assert said.stdout.count(" no ") and said.stdout.count(" yes ")


def test_steering_goes_to_the_harness_with_its_strength(directions, tmp_path):
    op = sk.Add(directions[2], strength=-2.0, positions="generated")
    save_steering(tmp_path / "s.safetensors", op)
    said = run(tmp_path / "s.safetensors", "--to", "lm_eval", "-o", tmp_path / "s.pt")
    assert said.exit_code == 0, said.stderr
    assert "positions 'generated'" in shown(said.stderr)
    held = torch.load(tmp_path / "s.pt", weights_only=True)
    assert held["layers.1"]["steering_coefficient"] == -2.0
    assert torch.equal(held["layers.1"]["steering_vector"], directions[2].vector)


def test_files_of_others_with_their_model(tiny_folder, tmp_path):
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1))
    torch.save(vector.double(), tmp_path / "direction.pt")
    (tmp_path / "direction_metadata.json").write_text('{"pos": -1, "layer": 2}')
    said = run(tmp_path / "direction.pt", "-m", tiny_folder, "-o", tmp_path / "v.gguf", "--json")
    assert said.exit_code == 0, said.stderr
    data = json.loads(said.stdout)
    assert data["conventions"][0].startswith("layer 2 is the input of block 2: resid_pre@2")
    assert data["conversions"] == ["resid_pre@2 is written as direction.1: the same stream"]
    folder = run(tmp_path / "direction.pt", "--to", "caa", "-o", tmp_path / "caa")
    assert folder.exit_code == 0, folder.stderr
    assert [p.name for p in (tmp_path / "caa").iterdir()] == ["vec_layer_1_unknown.pt"]


def test_nothing_is_overwritten_unasked(directions, tmp_path):
    directions[2:3].save(tmp_path / "d.safetensors")
    for name, to in (("v.gguf", "gguf"), ("folder", "caa"), ("other", "refusal_direction")):
        options = (tmp_path / "d.safetensors", "-o", tmp_path / name, "--to", to)
        assert run(*options).exit_code == 0
        again = run(*options)
        assert again.exit_code == 2 and "pass --force" in shown(again.stderr)
        assert run(*options, "--force").exit_code == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["absent.gguf", "-o", "v.gguf"], "there is nothing at absent.gguf"),
        (["absent.gguf", "-o", "v.bin"], "'v.bin' does not say its format"),
        (["absent.gguf", "-o", "v", "--to", "ggml"], "did you mean 'gguf'"),
        (["d.safetensors", "-o", "v.gguf"], "two vectors for the output of block 1"),
        (["d.safetensors", "-o", "v.gguf", "--layers", "0"], "nothing of this can be written as"),
        (["d.safetensors", "-o", "v.gguf", "--layers", "9"], "no direction is of these layers"),
        (["v.txt", "-o", "v.gguf"], "does not say its kind"),
    ],
)
def test_bad_input_is_explained_and_leaves_nothing(
    options, text, directions, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    directions.save("d.safetensors")
    (tmp_path / "v.txt").write_text("hello")
    said = run(*options)
    assert said.exit_code == 2, said.stdout
    assert text in shown(said.stderr)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.safetensors", "v.txt"]


def test_vectors_of_another_model_are_refused_unless_transferred(directions, tiny_folder, tmp_path):
    info = replace(directions[0].model, fingerprint="c" * 64, name="another")
    Directions((replace(directions[2], model=info),)).save(tmp_path / "d.safetensors")
    options = (tmp_path / "d.safetensors", "-m", tiny_folder, "-o", tmp_path / "v.gguf")
    refused = run(*options)
    assert refused.exit_code == 2 and "was taken on another" in shown(refused.stderr)
    assert run(*options, "--transfer").exit_code == 0

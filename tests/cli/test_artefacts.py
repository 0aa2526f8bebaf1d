"""Live changes from the command line: what a server that shares the folder finds from then on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import steerkit as sk
from steerkit.cli import app
from steerkit.direction import Direction
from steerkit.interventions import save_steering
from steerkit.protocols import ModelInfo
from steerkit.site import Site
from steerkit.vllm import Artefacts
from steerkit.vllm.registrations import FOLDER, Registration


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A steering file of a model that nobody has."""
    info = ModelInfo(
        name="tiny", model_type="llama", n_layers=3, d_model=8, d_vocab=50, n_ctx=64,
        streams=("resid_pre", "resid_post"), dtype="float32", device="cpu", fingerprint="f" * 64,
    )  # fmt: skip
    direction = Direction(
        unit=torch.eye(8)[0], scale=2.0, site=Site(1), method="mean_difference", concept="joy",
        positive_mean=1.0, negative_mean=-1.0, model=info, pooling="last",
    )  # fmt: skip
    return save_steering(tmp_path / "joy.safetensors", sk.Add(direction, 1.5))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artefacts:
    """What a server that runs sees."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv(FOLDER, str(folder))
    return Artefacts(folder)


def run(*given: str) -> tuple[int, Any, str]:
    """Exit code, JSON, and what was said."""
    done = CliRunner().invoke(app, ["artefacts", given[0], "--json", *given[1:]])
    return done.exit_code, json.loads(done.stdout), done.stderr


def test_names_strengths_and_the_default_are_changed_and_listed(
    server: Artefacts, file: Path
) -> None:
    code, found, _ = run("register", "joy", str(file))
    (one,) = found["artefacts"]
    assert code == 0 and found["default"] is None and one["strength"] is None
    digest = server.named("joy")
    assert one["sha256"] == digest and one["name"] == "joy"
    assert one["interventions"] == [str(server.open(digest)[0])]
    run("strength", "joy", "0.5")
    assert server.registration("joy") == Registration(digest, 0.5)
    run("strength", "joy", "--", "-1")
    assert server.registration("joy") == Registration(digest, -1.0)
    run("strength", "joy", "own")
    assert server.registration("joy") == Registration(digest)
    run("default", "joy:0.25")
    assert server.default == {"artefact": "joy", "strength": 0.25}
    code, found, _ = run("list")
    assert found["default"] == server.default and found["artefacts"][0]["default"]
    run("default", "none")
    assert server.default is None
    run("register", "joy", str(file), "--strength", "2")
    assert server.registration("joy").strength == 2.0
    run("forget", "joy")
    assert not server.names
    shown = CliRunner().invoke(app, ["artefacts", "list", "--folder", str(server.folder)])
    assert "requests that say nothing are not steered" in shown.stdout


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("strength", "joy", "much"), "a strength is a number, or 'own'"),
        (("strength", "joy", "nan"), "finite number"),
        (("strength", "joi", "1"), "did you mean 'joy'"),
        (("default", "sad"), "no artefact named 'sad'"),
        (("default", "joy:"), "'name' or 'name:strength'"),
        (("forget", "sad"), "no artefact named 'sad'"),
        (("register", "none", "FILE"), "choose another name"),
        (("register", "joy", "nowhere.safetensors"), "no steering file at"),
        (("register", "joy", "FOLDER"), "no steering file at"),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(
    server: Artefacts, file: Path, given: tuple[str, ...], words: str
) -> None:
    server.register("joy", file, strength=0.5)
    before = server.registrations
    stands_for = {"FILE": str(file), "FOLDER": str(server.folder)}
    code, found, _ = run(*(stands_for.get(one, one) for one in given))
    assert code == 2 and words in found["error"]["message"]
    assert server.registrations == before and server.default is None


def test_the_default_is_not_forgotten(server: Artefacts, file: Path) -> None:
    server.register("joy", file)
    server.set_default("joy")
    code, found, _ = run("forget", "joy")
    assert code == 2 and "set another default, or none" in found["error"]["message"]


def test_a_damaged_file_is_listed_with_what_is_wrong(server: Artefacts, file: Path) -> None:
    server.path(server.register("joy", file)).write_bytes(b"something else")
    code, found, _ = run("list")
    assert code == 0 and "not the file that was registered" in found["artefacts"][0]["problem"]
    shown = CliRunner().invoke(app, ["artefacts", "list"], env={"COLUMNS": "200"})
    assert "refused: " in shown.stdout


def test_a_folder_that_no_server_has_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.chdir(tmp_path)
    for given in (("list",), ("register", "joy", str(file)), ("list", "--folder", "nowhere")):
        code, found, _ = run(*given)
        assert code == 2 and "no server keeps artefacts at" in found["error"]["message"]
    assert not (tmp_path / "steerkit-vllm").exists()

"""Names stand for contents that never change; what is no steering file is not kept."""

from pathlib import Path
from typing import Any

import pytest

import steerkit as sk
from steerkit.errors import InterventionError, OutputError
from steerkit.interventions import save_steering
from steerkit.vllm.registrations import AT_START, FOLDER, Artefacts, artefacts


def test_a_name_holds_what_was_registered_also_for_other_processes(
    artefacts: Artefacts, direction: Any, tmp_path: Path
) -> None:
    file = save_steering(tmp_path / "joy.safetensors", sk.Add(direction(), 2.0))
    digest = artefacts.register("joy", file)
    elsewhere = Artefacts(artefacts.folder)
    assert elsewhere.named("joy") == digest
    assert dict(elsewhere.names) == {"joy": digest}
    (found,) = elsewhere.open(digest)
    assert found.strength == 2.0


def test_replacing_a_file_or_a_name_leaves_what_requests_asked_for(
    artefacts: Artefacts, direction: Any, tmp_path: Path
) -> None:
    file = tmp_path / "joy.safetensors"
    first = artefacts.register("joy", save_steering(file, sk.Add(direction(), 2.0)))
    second = artefacts.register("joy", save_steering(file, sk.Add(direction(), 3.0)))
    assert first != second == artefacts.named("joy")
    assert [artefacts.open(digest)[0].strength for digest in (first, second)] == [2.0, 3.0]
    artefacts.forget("joy")
    assert not artefacts.names
    assert artefacts.open(second)


def test_an_unknown_name_is_refused_with_those_that_are_known(
    artefacts: Artefacts, direction: Any, tmp_path: Path
) -> None:
    with pytest.raises(InterventionError, match="none is registered"):
        artefacts.named("joy")
    artefacts.register("joy", save_steering(tmp_path / "j.safetensors", sk.Add(direction())))
    with pytest.raises(InterventionError, match="did you mean 'joy'"):
        artefacts.named("joi")
    with pytest.raises(InterventionError, match=r"no artefact named '\.\./names/joy'"):
        artefacts.named("../names/joy")
    with pytest.raises(InterventionError, match="made of letters"):
        artefacts.register("../joy", tmp_path / "j.safetensors")


def test_corrupt_missing_and_changed_files_are_refused(
    artefacts: Artefacts, direction: Any, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match="no steering file at"):
        artefacts.register("joy", tmp_path / "nowhere.safetensors")
    file = save_steering(tmp_path / "joy.safetensors", sk.Add(direction()))
    digest = artefacts.keep(file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(OutputError):
        artefacts.register("joy", file)
    assert not artefacts.names
    artefacts.path(digest).write_bytes(b"something else")
    with pytest.raises(OutputError, match="not the file that was registered"):
        artefacts.open(digest)


def test_artefacts_can_be_named_at_start(
    monkeypatch: pytest.MonkeyPatch, direction: Any, tmp_path: Path
) -> None:
    file = save_steering(tmp_path / "joy.safetensors", sk.Add(direction()))
    monkeypatch.setenv(FOLDER, str(tmp_path / "one"))
    monkeypatch.setenv(AT_START, f"joy={file}; sad = {file}")
    assert set(artefacts().names) == {"joy", "sad"}
    monkeypatch.setenv(FOLDER, str(tmp_path / "two"))
    monkeypatch.setenv(AT_START, str(file))
    with pytest.raises(InterventionError, match="holds name=path entries"):
        artefacts()

"""Names stand for contents that never change; what is no steering file is not kept."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import steerkit as sk
from steerkit.errors import InterventionError, OutputError
from steerkit.interventions import save_steering
from steerkit.vllm.registrations import (
    AT_START,
    DEFAULT,
    FOLDER,
    PATHS,
    Artefacts,
    Registration,
    artefacts,
)


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


def test_a_strength_stands_beside_the_hash_until_the_name_is_given_anew(
    artefacts: Artefacts, direction: Any, tmp_path: Path
) -> None:
    file = save_steering(tmp_path / "joy.safetensors", sk.Add(direction(), 2.0))
    digest = artefacts.register("joy", file)
    elsewhere = Artefacts(artefacts.folder)
    for strength in (0.5, -1e-9, 0.1 + 0.2, None, 3):
        artefacts.set_strength("joy", strength)
        assert elsewhere.registration("joy") == Registration(digest, strength)
        assert dict(elsewhere.names) == {"joy": digest}
    artefacts.register("joy", file)
    assert elsewhere.registration("joy") == Registration(digest)
    artefacts.register("joy", file, strength=0.25)
    assert elsewhere.registration("joy").strength == 0.25
    for strength in (float("nan"), float("inf"), True, "1"):
        with pytest.raises(InterventionError, match="strength is a finite number"):
            artefacts.set_strength("joy", strength)  # type: ignore[arg-type]
    assert elsewhere.registration("joy").strength == 0.25
    with pytest.raises(InterventionError, match="no artefact named 'joi'"):
        artefacts.set_strength("joi", 1.0)


def test_hash_and_strength_are_never_seen_apart_and_no_change_is_lost(
    artefacts: Artefacts, direction: Any, tmp_path: Path
) -> None:
    """One registers, another changes strengths, a third looks all the while."""
    files = [
        save_steering(tmp_path / f"{i}.safetensors", sk.Add(direction(), 1.0 + i)) for i in (0, 1)
    ]
    pairs = [Registration(artefacts.keep(file), float(i)) for i, file in enumerate(files)]
    artefacts.register("joy", files[0], strength=0.0)
    artefacts.register("sad", files[0])
    done = threading.Event()
    seen: set[Registration] = set()

    def look() -> None:
        while not done.is_set():
            seen.add(Artefacts(artefacts.folder).registration("joy"))

    def change() -> None:
        while not done.is_set():
            Artefacts(artefacts.folder).set_strength("sad", 2.0)

    threads = [threading.Thread(target=look), threading.Thread(target=change)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        for i in (0, 1):
            artefacts.register("joy", files[i], strength=float(i))
            artefacts.register("sad", files[i])
            assert artefacts.named("sad") == pairs[i].digest
    done.set()
    for thread in threads:
        thread.join()
    assert seen <= set(pairs)
    assert artefacts.registration("sad") == Registration(pairs[1].digest, 2.0)


def test_a_default_is_what_silent_requests_are_taken_to_say(
    artefacts: Artefacts, direction: Any, tmp_path: Path
) -> None:
    assert not artefacts.has_default and artefacts.default is None
    artefacts.register("joy", save_steering(tmp_path / "j.safetensors", sk.Add(direction())))
    elsewhere = Artefacts(artefacts.folder)
    artefacts.set_default("joy")
    assert elsewhere.has_default and elsewhere.default == {"artefact": "joy"}
    artefacts.set_default("joy", 0.5)
    assert elsewhere.default == {"artefact": "joy", "strength": 0.5}
    with pytest.raises(InterventionError, match="no artefact named 'sad'"):
        artefacts.set_default("sad")
    with pytest.raises(InterventionError, match="'joy' is the default"):
        artefacts.forget("joy")
    assert elsewhere.default == {"artefact": "joy", "strength": 0.5}
    artefacts.set_default(None)
    assert not elsewhere.has_default and elsewhere.default is None
    artefacts.forget("joy")
    artefacts.folder.joinpath("default").write_text("{")
    with pytest.raises(OutputError, match="set the default again"):
        _ = elsewhere.default


def test_none_is_no_name(artefacts: Artefacts, direction: Any, tmp_path: Path) -> None:
    file = save_steering(tmp_path / "j.safetensors", sk.Add(direction()))
    with pytest.raises(InterventionError, match="choose another name"):
        artefacts.register("none", file)


def test_a_kept_file_that_was_damaged_is_mended_by_registering_it_again(
    artefacts: Artefacts, direction: Any, tmp_path: Path
) -> None:
    file = save_steering(tmp_path / "joy.safetensors", sk.Add(direction(), 1.75))
    digest = artefacts.register("joy", file)
    artefacts.path(digest).write_bytes(b"something else")
    with pytest.raises(OutputError, match="register it again"):
        artefacts.open(digest)
    assert artefacts.register("joy", file) == digest
    assert artefacts.open(digest)[0].strength == 1.75


def test_paths_are_taken_from_oneself_and_not_from_others(
    artefacts: Artefacts, direction: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save_steering(tmp_path / "joy.safetensors", sk.Add(direction()))
    digest = artefacts.register("joy", file, strength=0.5)
    serving = "vllm.v1.engine.async_llm"
    monkeypatch.delitem(sys.modules, serving, raising=False)
    assert artefacts.asked(str(file)) == Registration(digest)
    monkeypatch.setitem(sys.modules, serving, sys)
    with pytest.raises(InterventionError, match="by name and no paths"):
        artefacts.asked(str(file))
    with pytest.raises(InterventionError, match="by name and no paths"):
        artefacts.asked("/etc/passwd")
    assert artefacts.asked("joy") == Registration(digest, 0.5)
    monkeypatch.setenv(PATHS, "1")
    assert artefacts.asked(str(file)) == Registration(digest)
    monkeypatch.delitem(sys.modules, serving)
    monkeypatch.setenv(PATHS, "0")
    with pytest.raises(InterventionError, match="by name and no paths"):
        artefacts.asked(str(file))


def test_what_was_named_at_start_is_done_once(
    monkeypatch: pytest.MonkeyPatch, direction: Any, tmp_path: Path
) -> None:
    """A process that starts later leaves what was changed meanwhile."""
    file = save_steering(tmp_path / "joy.safetensors", sk.Add(direction()))
    monkeypatch.setenv(FOLDER, str(tmp_path / "one"))
    monkeypatch.setenv(AT_START, f"joy={file}")
    monkeypatch.setenv(DEFAULT, "joy:0.5")
    first = artefacts()
    assert first.default == {"artefact": "joy", "strength": 0.5}
    assert AT_START not in os.environ and DEFAULT not in os.environ
    first.set_default(None)
    first.set_strength("joy", 2.0)
    code = "from steerkit.vllm import artefacts as a; print(a().default, a().registration('joy'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("None Registration(") and "strength=2.0" in done.stdout
    for wrong in ("joy:", "joy:much", "joy:nan"):
        monkeypatch.setenv(FOLDER, str(tmp_path / wrong.replace(":", "-")))
        monkeypatch.setenv(AT_START, f"joy={file}")
        monkeypatch.setenv(DEFAULT, wrong)
        with pytest.raises(InterventionError, match=r"a default reads|finite number"):
            artefacts()

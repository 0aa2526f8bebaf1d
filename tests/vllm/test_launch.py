"""The command that is printed starts what was checked; what would go wrong is said before."""

import json
import os
import shlex
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import steerkit as sk
from steerkit import organisms
from steerkit.cli import app
from steerkit.errors import ModelError, SteerkitError
from steerkit.interventions import save_steering
from steerkit.vllm.launch import checked, launch
from steerkit.vllm.registrations import AT_START, DEFAULT, FOLDER, PATHS, Artefacts

here = pytest.mark.skipif(
    find_spec("vllm") is None,
    reason="needs vLLM, which tests/vllm/environment.sh installs beside steerkit",
)


def has_distribution(name: str) -> bool:
    """Whether a package of this name is installed."""
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


LENGTH = ("--max-model-len", "64")


@pytest.fixture(scope="module")
def info() -> Any:
    """Of the shipped organism."""
    return sk.load("organism:aligned").info


def other(info: Any) -> Any:
    """A model of the same sizes and other weights."""
    return replace(info, name="another", fingerprint="0" * 64)


@pytest.fixture
def file(info: Any, direction: Any, tmp_path: Path) -> Path:
    """A steering file of the shipped organism."""
    return save_steering(tmp_path / "joy.safetensors", sk.Add(direction(info=info), 1.5))


def test_the_command_carries_all_that_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLLM_PLUGINS", "steerkit,other")
    made = launch(
        "organism:aligned",
        {"joy": "a b.safetensors", "sad": "/c.safetensors"},
        folder="served",
        default="joy:0.5",
        paths=True,
        arguments=("--port", "80", "--served-model-name", "x y"),
    )
    words = shlex.split(made.command.replace("\\\n", " "))
    variables = dict(word.split("=", 1) for word in words[: len(made.environment)])
    assert variables == made.environment
    assert variables[FOLDER] == str(tmp_path / "served")
    assert variables[AT_START] == f"joy={tmp_path}/a b.safetensors;sad=/c.safetensors"
    assert variables[DEFAULT] == "joy:0.5" and variables[PATHS] == "1"
    assert variables["VLLM_PLUGINS"] == "steerkit,other"
    program, *rest = words[len(variables) :]
    # vLLM's own command does not start where its package has another name.
    assert Path(program).name == ("vllm" if has_distribution("vllm") else "python")
    at = rest.index(str(organisms.path("aligned")))
    assert rest[at:] == [made.model, *made.arguments] and rest[-1] == "x y"
    assert made.argv[-len(rest[at:]) :] == (*rest[at:],)
    monkeypatch.delenv("VLLM_PLUGINS")
    bare = launch("m", {}, folder="served").environment
    assert {AT_START, DEFAULT, PATHS}.isdisjoint(bare)
    # Naming any names all: those that vLLM would have loaded unasked are still loaded.
    assert "steerkit" in bare["VLLM_PLUGINS"].split(",")


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is here")
def test_without_vllm_it_says_so(file: Path) -> None:
    done = CliRunner().invoke(app, ["serve", "organism:aligned", "--steer", f"joy={file}"])
    assert done.exit_code == 2 and "knows vLLM 0.32.x and this is none" in done.stderr


def test_wrong_usage(file: Path) -> None:
    for given, words in (
        (("--steer", str(file)), "--steer reads name=path"),
        (("--steer", f"joy={file}", "--steer", f"joy={file}"), "each name once"),
    ):
        done = CliRunner().invoke(app, ["serve", "organism:aligned", *given])
        assert done.exit_code == 2 and words in done.stderr


@here
def test_what_is_checked_is_what_the_server_will_know(
    file: Path, tmp_path: Path, info: Any, direction: Any
) -> None:
    """Names of an earlier start are listed too, the default among them."""
    earlier = Artefacts(tmp_path / "served")
    earlier.register("sad", save_steering(tmp_path / "s.safetensors", sk.Add(direction(info=info))))
    foreign = save_steering(tmp_path / "f.safetensors", sk.Add(direction(info=other(info))))
    earlier.register("foreign", foreign)
    earlier.set_default("sad", 2.0)
    before = dict(os.environ)
    given = ["serve", "organism:aligned", "-s", f"joy={file}", "--folder", str(earlier.folder)]
    done = CliRunner().invoke(app, [*given, "--port", "81", "--json", "--", *LENGTH])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["fingerprint"] == info.fingerprint
    assert found["arguments"][-4:] == ["--port", "81", *LENGTH]
    assert found["default"] == {"artefact": "sad", "strength": 2.0}
    rows = {one["name"]: one for one in found["artefacts"]}
    assert {name: one["default"] for name, one in rows.items()} == {
        "joy": False, "sad": True, "foreign": False,
    }  # fmt: skip
    assert not rows["joy"]["problem"] and "taken on another" in rows["foreign"]["problem"]
    # A check changes nothing.
    assert dict(os.environ) == before and set(earlier.names) == {"sad", "foreign"}


@here
@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("another model's", r"--steer foreign=.*taken on another"),
        ("no file", r"--steer gone=.*no steering file"),
        ("damaged", r"--steer bad=.*"),
        ("no such site", r"--steer deep=.*has layers"),
        ("default", "the default 'sad' is not among the artefacts"),
        ("stages", "spread over pipeline stages"),
        ("plugins", "would leave steerkit out: VLLM_PLUGINS=other"),
        ("rust", "Rust front end"),
        ("unknown model", "vLLM refuses this|no checkpoint"),
        ("length", "vLLM refuses this"),
    ],
)
def test_what_would_go_wrong_is_said_before(
    case: str,
    words: str,
    file: Path,
    tmp_path: Path,
    direction: Any,
    info: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steer: dict[str, Path] = {"joy": file}
    arguments, default, model = LENGTH, "", "organism:aligned"
    if case == "another model's":
        steer["foreign"] = save_steering(
            tmp_path / "f.safetensors", sk.Add(direction(info=other(info)))
        )
    elif case == "no file":
        steer["gone"] = tmp_path / "gone.safetensors"
    elif case == "damaged":
        steer["bad"] = tmp_path / "bad.safetensors"
        steer["bad"].write_bytes(file.read_bytes()[:100])
    elif case == "no such site":
        deep = sk.Add(direction(info=info), sites=99)
        steer["deep"] = save_steering(tmp_path / "d.safetensors", deep)
    elif case == "default":
        default = "sad"
    elif case == "stages":
        arguments = (*LENGTH, "--pipeline-parallel-size", "2")
    elif case == "plugins":
        monkeypatch.setenv("VLLM_PLUGINS", "other")
    elif case == "rust":
        monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    elif case == "unknown model":
        model = str(tmp_path / "nothing")
    elif case == "length":
        arguments = ("--max-model-len", "100000")
    start = launch(model, steer, folder=tmp_path / "served", default=default, arguments=arguments)
    with pytest.raises(SteerkitError, match=words):
        checked(start)


@here
def test_a_model_that_cannot_be_steered_is_named(tmp_path: Path) -> None:
    import transformers

    sizes = {"hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.OPTConfig(
        **sizes, vocab_size=128, max_position_embeddings=128, word_embed_proj_dim=64
    )
    transformers.OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    start = launch(str(tmp_path / "opt"), {}, folder=tmp_path / "served", arguments=LENGTH)
    with pytest.raises(ModelError, match="could not steer: OPTForCausalLM is not among"):
        checked(start)


@here
def test_run_starts_what_was_checked(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []

    class Started(Exception):
        pass

    def instead(*given: Any) -> None:
        started.append(given)
        raise Started

    monkeypatch.setattr(os, "execve", instead)
    given = ["serve", "organism:aligned", "-s", f"joy={file}", "--default", "joy:0.5", "--run"]
    CliRunner().invoke(app, [*given, "--folder", str(tmp_path / "served"), "--", *LENGTH])
    ((program, argv, environment),) = started
    assert argv[:2] == (program, "-m") and argv[-2:] == LENGTH
    assert environment[DEFAULT] == "joy:0.5" and environment["PATH"] == os.environ["PATH"]


@here
def test_the_command_is_printed_so_that_it_can_be_copied(file: Path, tmp_path: Path) -> None:
    """Whole and unwrapped, however narrow the terminal is."""
    folder = tmp_path / ("long" * 40)
    given = ["serve", "organism:aligned", "-s", f"joy={file}", "--folder", str(folder)]
    done = CliRunner().invoke(app, [*given, "--", *LENGTH], env={"COLUMNS": "40"})
    arguments = ("--port", "8000", *LENGTH)
    start = launch("organism:aligned", {"joy": file}, folder=folder, arguments=arguments)
    assert done.exit_code == 0 and done.stdout.endswith(f"steered\n{start.command}\n")

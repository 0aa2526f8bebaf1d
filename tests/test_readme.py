"""What the README says is so: its example runs, its links and commands lead somewhere."""

import re
import shlex
import tomllib
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_example_runs(capsys, tmp_path, monkeypatch):
    import steerkit

    monkeypatch.chdir(tmp_path)
    # As it stands, but for how many prompts the random searches are asked.
    monkeypatch.setattr(steerkit, "search", partial(steerkit.search, null_budget=1))
    example, datasets = blocks("python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    exec(compile(example, "README.md", "exec"), {})
    assert "Steering lowered refusal on positive prompts" in capsys.readouterr().out
    names: dict[str, object] = {}
    exec(compile(datasets, "README.md", "exec"), names)
    assert len(names["acts"]) == 64 and names["directions"][0].scale > 0


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_part_named_is_there():
    import importlib

    for name in set(re.findall(r"`(steerkit\.[a-z_]+)`", README)):
        importlib.import_module(name)


def test_every_name_of_the_library_is_there():
    import steerkit

    named = set(re.findall(r"\bsk\.([A-Za-z_]+)", README))
    assert len(named) > 20 and named <= set(dir(steerkit))


def test_the_two_commands_are_single_lines_that_install_what_was_tested():
    commands = [line for block in blocks("bash") for line in block.splitlines() if "venv" in line]
    assert len(commands) == 2
    for command in commands:
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install")
        assert "-c constraints.txt" in command
    assert commands[0].endswith(".venv/bin/steerkit demo")
    assert ".venv/bin/python -m pytest" in commands[1]


def test_the_ci_runs_the_second_command_as_it_stands():
    script = (ROOT / ".ci" / "run").read_text()
    (pattern,) = re.findall(r"grep -m1 -E '([^']+)' README\.md", script)
    found = [line for line in README.splitlines() if re.search(pattern, line)]
    assert len(found) == 1 and "pytest" in found[0]


def test_commands_shown_are_known_to_the_command_line():
    from steerkit.cli import app

    lines = [line for block in blocks("bash") for line in block.splitlines()]
    shown = [part.strip() for line in lines for part in line.split("&&")]
    for line in [line for line in shown if line.startswith("steerkit ")]:
        command, *options = shlex.split(line)[1:]
        path = [command, options[0]] if command in ("sae", "store") else [command]
        text = CliRunner().invoke(app, [*path, "--help"]).stdout
        for option in [o for o in options if o.startswith("--")]:
            assert option in text


def test_what_is_imported_is_pinned_by_the_constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[A-Za-z0-9.]+", pin) for pin in pins)
    names = {pin.split("==")[0] for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    missing = {re.split(r"[\[<>=]", w)[0].lower().replace("_", "-") for w in wanted} - names
    assert not missing


@pytest.mark.parametrize("name", ["LICENSE", "CHANGELOG.md", "constraints.txt"])
def test_the_files_that_go_with_it(name):
    assert (ROOT / name).stat().st_size > 500


def test_the_measured_tables_are_what_the_results_say():
    import importlib.util

    spec = importlib.util.spec_from_file_location("summary", ROOT / "benchmarks" / "summary.py")
    assert spec is not None and spec.loader is not None
    summary = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(summary)
    rows = [*summary.rows(), *summary.regrets()]
    assert len(rows) > 20
    for row in rows:
        assert row in README

import json

import pytest
from typer.testing import CliRunner

import steerkit
from steerkit.cli import app

COMMANDS = (
    "demo",
    "run",
    "capture",
    "extract",
    "criteria",
    "search",
    "calibrate",
    "steer",
    "audit",
    "patch",
    "monitor",
    "probe",
    "tcav",
    "bias",
    "convert",
    "certify",
    "serve",
)


def test_the_help_names_every_command_and_exit_code():
    shown = CliRunner().invoke(app, ["--help"]).stdout
    for command in COMMANDS:
        assert f"steerkit {command}" in shown
    for code in ("0 ", "1 ", "2 ", "3 ", "130 "):
        assert f"\n   {code}" in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_teaches_by_examples(command):
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert result.stdout.count(f"steerkit {command}") >= 3
    assert "Examples:" in result.stdout and "--json" in result.stdout


def test_the_version():
    assert CliRunner().invoke(app, ["--version"]).stdout == f"steerkit {steerkit.__version__}\n"


def test_no_command_shows_the_help():
    assert "Start here" in CliRunner().invoke(app, []).output


def test_wrong_usage_is_json_free_and_code_2():
    result = CliRunner().invoke(app, ["run", "--json"])
    assert result.exit_code == 2 and "--model" in result.stderr
    with pytest.raises(json.JSONDecodeError):
        json.loads(result.stdout)

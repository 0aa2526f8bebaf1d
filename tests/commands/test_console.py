import json
import os
import signal
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from steerkit.commands import console
from steerkit.errors import PromptError


def program(act) -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)

    def go(size: Annotated[int, typer.Option(help="How large.")] = 1) -> console.Answer:
        """Go."""
        return act(size)

    console.register(app, "go", go)
    return app


def run(act, *options: str):
    return CliRunner().invoke(program(act), [*options])


def test_json_is_alone_on_stdout_and_strict():
    def act(size):
        print("a library talks")
        return console.Answer({"size": size, "missing": float("nan")}, "a view")

    result = run(act, "--json", "--size", "3")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"size": 3, "missing": None}
    assert "a library talks" in result.stderr


def test_people_see_the_view():
    result = run(lambda size: console.Answer({"size": size}, "a view", console.NOTHING_FOUND))
    assert result.stdout == "a view\n"
    assert result.exit_code == 3


def fail_with(error: BaseException):
    def act(size):
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (PromptError("no contrast file at x"), 2, "no contrast file at x"),
        (KeyboardInterrupt(), 130, "nothing half-written is left"),
        (ZeroDivisionError("by zero"), 1, "ZeroDivisionError: by zero"),
    ],
)
def test_an_error_is_one_panel_and_a_code(error, code, says):
    result = run(fail_with(error))
    assert result.exit_code == code
    assert says in result.stderr and "Traceback" not in result.stderr
    assert result.stdout == ""
    as_json = run(fail_with(error), "--json")
    assert as_json.exit_code == code
    assert says in json.loads(as_json.stdout)["error"]["message"]


def test_debug_shows_where():
    result = run(fail_with(PromptError("no")), "--debug")
    assert "Traceback" in result.stderr and result.exit_code == 2


def test_a_killed_command_cleans_up_and_leaves_the_handler_as_it_was():
    before = signal.getsignal(signal.SIGTERM)
    cleaned = []

    def act(size):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            cleaned.append(True)

    assert run(act).exit_code == 130
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_wrong_usage_is_code_2():
    result = run(lambda size: console.Answer({}), "--size", "many")
    assert result.exit_code == 2 and "--size" in result.stderr

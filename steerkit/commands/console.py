"""How every command behaves: what is printed where, exit codes, errors as one panel.

A command is a function that returns an `Answer`. People see its view; `--json` prints its
data as one JSON object to stdout and nothing else there. Progress and messages go to stderr.
"""

import inspect
import json
import math
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import wraps
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from steerkit.errors import SteerkitError

OK, UNEXPECTED, BAD_INPUT, NOTHING_FOUND, INTERRUPTED = 0, 1, 2, 3, 130
EXIT_CODES = """\b
Exit codes:
  0    done
  1    something unexpected (a bug: --debug shows where)
  2    wrong usage or bad input, explained in one panel
  3    the search found nothing within the guard
  130  interrupted; nothing half-written is left"""


@dataclass(frozen=True)
class Answer:
    """What a command has to say: `data` for scripts, `view` for people, and its exit code.

    `verbatim` follows the view as it is, for people to copy: views are fitted to the terminal.
    """

    data: Mapping[str, Any]
    view: RenderableType = field(default_factory=Text)
    code: int = OK
    verbatim: str = ""


def register(app: typer.Typer, name: str, function: Callable[..., Answer]) -> None:
    """Make a function a command of the app, with `--json` and `--debug` added to it."""
    signature = inspect.signature(function)

    @wraps(function)
    def run(*, as_json: bool, debug: bool, **options: Any) -> None:
        _act(lambda: function(**options), as_json=as_json, debug=debug)

    added = (
        _flag("as_json", "--json", "Print one JSON object to stdout and nothing else there."),
        _flag("debug", "--debug", "On an error, show the traceback."),
    )
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), *added], return_annotation=None
    )
    run.__annotations__ = {
        **function.__annotations__,
        **{parameter.name: parameter.annotation for parameter in added},
        "return": None,
    }
    app.command(name)(run)


def say(text: str) -> None:
    """One line about what is being done, to stderr."""
    Console(stderr=True, highlight=False).print(Text("› ", style="dim").append(text))


def table(title: str, *columns: str, rows: Sequence[tuple[str, ...]]) -> Table:
    """A short table: the first column to the left, the others to the right."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def stack(*parts: RenderableType) -> Group:
    """Several views below one another."""
    return Group(*parts)


def plain_numbers(value: Any) -> Any:
    """The value with NaN and infinities as null: strict JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain_numbers(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_numbers(v) for v in value]
    return value


def _act(act: Callable[[], Answer], *, as_json: bool, debug: bool) -> None:
    previous = _on_terminate()
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            if not debug:
                warnings.simplefilter("ignore")
                _hush_libraries()
            answer = act()
    except SteerkitError as error:
        _trace(debug)
        _fail(BAD_INPUT, type(error).__name__, str(error), as_json=as_json)
    except KeyboardInterrupt:
        _fail(INTERRUPTED, "Interrupted", "nothing half-written is left", as_json=as_json)
    except (typer.Exit, typer.Abort, SystemExit):
        raise
    except Exception as error:
        _trace(debug)
        text = f"{type(error).__name__}: {error}\nThis looks like a bug; --debug shows where."
        _fail(UNEXPECTED, "Unexpected", text, as_json=as_json)
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)
    if as_json:
        sys.stdout.write(json.dumps(plain_numbers(answer.data), indent=2) + "\n")
    else:
        Console().print(answer.view)
        sys.stdout.write(f"{answer.verbatim}\n" if answer.verbatim else "")
    raise typer.Exit(answer.code)


def _trace(debug: bool) -> None:
    if debug:
        Console(stderr=True).print_exception()


def _fail(code: int, kind: str, text: str, *, as_json: bool) -> NoReturn:
    if as_json:
        sys.stdout.write(json.dumps({"error": {"kind": kind, "message": text}}, indent=2) + "\n")
    panel = Panel(Text(text), title=kind, title_align="left", border_style="red")
    Console(stderr=True).print(panel)
    raise typer.Exit(code)


def _flag(name: str, option: str, text: str) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[bool, typer.Option(option, help=text)],
    )


def _hush_libraries() -> None:
    """A command line talks for itself: no advice and no bars of libraries in between."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _on_terminate() -> Any:
    """Turn SIGTERM into an interrupt, so that a killed run cleans up; the old handler back."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        return signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread: nothing to set
        return None

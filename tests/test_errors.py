"""One base class catches every error that steerkit raises on purpose, and nothing else."""

import ast
import inspect
from pathlib import Path

import steerkit
from steerkit import errors
from steerkit.errors import KINDS, SteerkitError

PACKAGE = Path(steerkit.__file__).parent


def test_every_kind_is_listed_documented_and_a_steerkit_error() -> None:
    defined = {
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if kind.__module__ == errors.__name__
    }
    assert defined == {SteerkitError, *KINDS}
    for kind in KINDS:
        assert kind.__bases__ == (SteerkitError,), "one level: catch one kind or all"
        assert kind.__doc__


def test_nothing_else_is_caught() -> None:
    for other in (ValueError, OSError, RuntimeError, KeyError):
        assert not issubclass(SteerkitError, other) and not issubclass(other, SteerkitError)


INNER = {"mapped.py", "gguf.py", "gguf_file.py"}
"""Modules whose plain errors their readers raise again with the path attached."""
BARE = {"ValueError", "KeyError", "RuntimeError", "Exception", "IndexError", "SteerkitError"}


def test_modules_raise_only_errors_of_a_kind() -> None:
    """A bare ValueError would pass by `except SteerkitError`; the base says no kind."""
    raised = [
        f"{path.relative_to(PACKAGE)}:{node.lineno} raises {node.exc.func.id}"
        for path in sorted(p for p in PACKAGE.rglob("*.py") if p.name not in INNER)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
        and node.exc.func.id in BARE
    ]
    assert not raised

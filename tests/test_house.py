"""House rules that no linter knows: names, files, seeds, and a test beside every part."""

import ast
import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import steerkit

PACKAGE = Path(steerkit.__file__).parent
ROOT = PACKAGE.parent
TESTS = ROOT / "tests"
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = sorted(
    path
    for folder in ("steerkit", "tests", "benchmarks", "notebooks", ".ci")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".md", ".jinja", ".css", ".ipynb", ".toml", ".sh", "")
    and path.is_file()
    and "__pycache__" not in path.parts
)


@cache
def tree_of(path: Path) -> ast.Module:
    """A file, parsed once for all rules."""
    return ast.parse(path.read_text(encoding="utf-8"))


class Call(NamedTuple):
    """One call of the library's own code."""

    place: str
    """File and line."""
    name: str
    """What is called, dotted."""
    node: ast.Call
    path: Path


@cache
def calls() -> tuple[Call, ...]:
    """Everything that the library calls."""
    return tuple(
        Call(f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), node, path)
        for path in MODULES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
    )


@pytest.mark.parametrize("name", steerkit.__all__)
def test_every_public_name_is_there_documented_and_unshadowed(name: str) -> None:
    found = getattr(steerkit, name)
    if name != "__version__":
        assert found.__doc__, "a public name explains itself"
    # After `import steerkit.capture`, the module would stand where the verb should.
    assert not (PACKAGE / f"{name}.py").exists() and not (PACKAGE / name).exists()


@pytest.mark.parametrize("package", sorted(p.parent.name for p in PACKAGE.glob("*/__init__.py")))
def test_no_module_of_a_package_is_shadowed_by_what_the_package_exports(package: str) -> None:
    init = ast.parse((PACKAGE / package / "__init__.py").read_text(encoding="utf-8"))
    exported = {
        alias.asname or alias.name
        for node in ast.walk(init)
        if isinstance(node, ast.ImportFrom) and node.module != f"steerkit.{package}"
        for alias in node.names
    }
    modules = {p.stem for p in (PACKAGE / package).glob("*.py")}
    assert not exported & modules


def test_every_part_has_tests_beside_it() -> None:
    missing = []
    for part in sorted(PACKAGE.iterdir()):
        if (part / "__init__.py").is_file():
            if not any((TESTS / part.name).rglob("test_*.py")):
                missing.append(f"tests/{part.name}/test_*.py")
        elif part.suffix == ".py" and part.stem != "__init__":
            beside = (TESTS / f"test_{part.stem}.py", TESTS / part.stem)
            if not any(place.exists() for place in beside):
                missing.append(f"tests/test_{part.stem}.py")
    assert not missing


def test_the_library_never_prints() -> None:
    assert not [call.place for call in calls() if call.name == "print"]


def test_no_global_randomness() -> None:
    """Seeds make local generators; `fork_rng` may seed the global one and gives it back."""
    drawn = r"(random|np\.random|numpy\.random)\.(?!Random|default_rng|Generator)\w+"
    assert not [
        (call.place, call.name)
        for call in calls()
        if re.fullmatch(drawn, call.name)
        or (
            call.name == "torch.manual_seed"
            and "fork_rng" not in call.path.read_text(encoding="utf-8")
        )
    ]


def test_no_file_is_executed_when_it_is_read() -> None:
    def safe(call: ast.Call) -> bool:
        given = {k.arg: ast.unparse(k.value) for k in call.keywords}
        return given.get("weights_only") == "True"

    assert not [
        call.place
        for call in calls()
        if call.name in ("pickle.load", "joblib.load", "eval", "exec")
        or (call.name == "torch.load" and not safe(call.node))
    ]


def test_no_path_of_somebodys_machine_and_nothing_left_to_do() -> None:
    machine = r"(?<![\w.\])}/-])/(home|root|Users|work|opt|mnt)/\w"
    unfinished = r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b"
    either = re.compile(f"{machine}|{unfinished}")

    def found(path: Path) -> Iterator[str]:
        text = path.read_text(encoding="utf-8")
        if either.search(text):
            for number, line in enumerate(text.splitlines(), 1):
                if either.search(line):
                    yield f"{path.relative_to(ROOT)}:{number}: {line.strip()}"

    assert not [line for path in SOURCES for line in found(path)]


def test_every_imported_library_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    listed = [*project["dependencies"], *optional["dev"], *optional["vllm"]]
    declared = {re.match(r"[\w-]+", line)[0].replace("-", "_").lower() for line in listed}  # type: ignore[index]
    known = {"scikit_learn": "sklearn"}
    declared = {known.get(name, name) for name in declared} | {"steerkit"} | sys.stdlib_module_names
    wrong = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in MODULES
        for node in ast.walk(tree_of(path))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        if name.split(".")[0] not in declared
    }
    assert not wrong


def test_registries_are_filled_by_files_alone() -> None:
    """Every registry of the library loads, and knows at least two names."""
    from steerkit.registry import Registry

    found = {}
    for path in MODULES:
        if "Registry" not in path.read_text(encoding="utf-8") or path.stem == "registry":
            continue
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for value in list(vars(importlib.import_module(name)).values()):
            if isinstance(value, Registry):
                found[value.kind] = value.names()
    assert len(found) >= 2
    assert all(len(names) >= 2 for names in found.values()), found

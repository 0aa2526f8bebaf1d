"""Imports point downward, heavy libraries have one door each, and `import steerkit` is light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import steerkit

PACKAGE = Path(steerkit.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"cli"}),
    frozenset({"commands"}),
    frozenset({"pipeline", "suites"}),
    frozenset({"plotting", "cards"}),
    frozenset(
        {
            "captures",
            "concepts",
            "evaluations",
            "probing",
            "searches",
            "redteam",
            "audits",
            "comparisons",
            "lenses",
            "edits",
            "compiled",
            "serving",
            "sae",
            "gradients",
            "stores",
            "vllm",
        }
    ),
    frozenset({"models"}),
    frozenset({"kernels", "interventions", "extraction", "formats", "organisms", "datasets"}),
)
"""From the top; whatever else stands at the top of the package is a noun, the lowest layer."""

SHOWS_ITSELF = {
    ("direction", "cards"),
    ("activations", "cards"),
    ("audits", "plotting"),
    ("sae", "plotting"),
    ("models", "compiled"),
    ("models", "concepts"),
    ("models", "serving"),
    ("models", "vllm"),
}
"""Results that render themselves (`_repr_html_`, `write`), and models that compile or serve
themselves, may reach up inside a function."""

DOORS: dict[str, tuple[str, ...]] = {
    "plotly": ("plotting/", "cards.py"),
    "transformer_lens": ("models/lens.py",),
    "sae_lens": ("sae/",),
    "transformers": ("models/", "organisms/", "compiled/", "serving/"),
    "triton": ("kernels/",),
    "ray": ("stores/executors/ray_cluster.py",),
    "datasets": ("stores/exports.py", "stores/sources.py"),
    "pyarrow": ("stores/sources.py",),
    "vllm": ("vllm/",),
    "typer": ("cli.py", "commands/"),
    "rich": ("cli.py", "commands/"),
    "pickle": (),
}
"""Library -> the only places that may import it."""

HEAVY = (
    "transformers",
    "transformer_lens",
    "sae_lens",
    "plotly",
    "sklearn",
    "ray",
    "datasets",
    "pyarrow",
)


class Import(NamedTuple):
    """One imported module, and how."""

    line: int
    name: str
    inside: bool
    """Inside a function: paid for when used."""
    typing: bool
    """Under TYPE_CHECKING: never run."""


@cache
def imports(path: Path) -> tuple[Import, ...]:
    """Every import statement of a file."""

    def walk(node: ast.AST, inside: bool, typing: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, inside, typing)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import"
            for alias in node.names:
                # `from steerkit import captures` imports a module, not a name.
                yield Import(node.lineno, f"{node.module}.{alias.name}", inside, typing)
        for child in ast.iter_child_nodes(node):
            guard = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, inside or function, typing or guard)

    return tuple(walk(ast.parse(path.read_text(encoding="utf-8")), False, False))


def part(path: Path) -> str:
    """The package or top-level module that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rank(name: str) -> int:
    """Height of a part; nouns are 0."""
    return next((len(LAYERS) - i for i, layer in enumerate(LAYERS) if name in layer), 0)


def own(found: Import) -> str | None:
    """The part of steerkit that is imported, if any."""
    words = found.name.split(".")
    if words[0] != "steerkit" or len(words) < 2:
        return None
    exists = (PACKAGE / words[1]).is_dir() or (PACKAGE / f"{words[1]}.py").is_file()
    return words[1] if exists else None


def test_the_table_of_layers_names_things_that_are_there_or_planned() -> None:
    packages = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert packages <= set().union(*LAYERS), "a new package needs its layer"


def test_imports_point_downward() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{found.line} reaches up to {found.name}"
        for path in MODULES
        if (here := part(path)) != "__init__"
        for found in imports(path)
        if (there := own(found)) is not None
        and rank(there) > rank(here)
        and not ((here, there) in SHOWS_ITSELF and (found.inside or found.typing))
    ]
    assert not wrong


def test_parts_do_not_import_each_other_in_circles() -> None:
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        here = part(path)
        for found in imports(path):
            there = own(found)
            if there not in (None, here) and here != "__init__" and not found.typing:
                if (here, there) not in SHOWS_ITSELF:
                    graph.setdefault(here, set()).add(str(there))
    assert len(tuple(TopologicalSorter(graph).static_order())) > 10


@pytest.mark.parametrize("library", DOORS)
def test_each_heavy_library_has_its_doors(library: str) -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{found.line}"
        for path in MODULES
        for found in imports(path)
        if found.name.split(".")[0] == library
        and not str(path.relative_to(PACKAGE)).startswith(DOORS[library] or ("nowhere",))
    ]
    assert not wrong, f"only {DOORS[library]} may import {library}"


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{found.line} {found.name}"
        for path in MODULES
        for found in imports(path)
        if found.name.split(".")[0] in HEAVY
        and not (found.inside or found.typing)
        and str(path.relative_to(PACKAGE)) not in DOORS.get(found.name.split(".")[0], ())
        and part(path) != "plotting"
    ]
    assert not wrong


@pytest.mark.parametrize("folder", ["extraction", "interventions", "kernels", "audits/checks"])
def test_pure_parts_never_see_a_real_model(folder: str) -> None:
    """Tensors and evidence in, tensors and scores out; so they test in milliseconds."""
    wrong = [
        f"{path.relative_to(PACKAGE)}:{found.line} {found.name}"
        for path in MODULES
        for found in imports(path)
        if str(path.relative_to(PACKAGE)).startswith(f"{folder}/")
        and found.name.startswith(("transformers", "steerkit.models", "steerkit.organisms"))
    ]
    assert not wrong


def loaded_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after a statement."""
    code = f"import sys; {statement}; print(*{{m.partition('.')[0] for m in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.split())


def test_importing_steerkit_is_light() -> None:
    loaded = loaded_after("import steerkit; dir(steerkit)")
    assert "steerkit" in loaded
    assert not loaded & {"torch", "numpy", *HEAVY}


def test_importing_everything_below_the_command_line_loads_no_heavy_library() -> None:
    parts = sorted(
        p.parent.name
        for p in PACKAGE.glob("*/__init__.py")
        if p.parent.name not in ("plotting", "commands")
    )
    names = ", ".join(f"steerkit.{name}" for name in parts)
    loaded = loaded_after(f"import {names}")
    assert "torch" in loaded
    assert not loaded & set(HEAVY)

"""The table of faults names tests that are there, and every test beside it is in the table."""

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
TESTS = HERE.parent
NAMED = re.findall(r"\| `([\w/]+\.py)(?:::(\w+))?` \|", (HERE / "README.md").read_text("utf-8"))


def named_in(file: Path) -> set[str]:
    """Names of the tests in a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {
        f.name
        for f in ast.walk(tree)
        if isinstance(f, ast.FunctionDef) and f.name.startswith("test_")
    }


def test_every_named_test_is_there() -> None:
    rows = [line for line in (HERE / "README.md").read_text("utf-8").splitlines() if "`" in line]
    assert len(NAMED) == sum(line.startswith("|") and "shown by" not in line for line in rows)
    missing = [
        f"{file}::{test}"
        for file, test in NAMED
        if not (TESTS / file).is_file() or (test and test not in named_in(TESTS / file))
    ]
    assert not missing


def test_every_fault_that_is_tested_here_is_in_the_table() -> None:
    for file in HERE.glob("test_*_faults.py"):
        listed = {test for name, test in NAMED if name == f"faults/{file.name}"}
        assert named_in(file) == listed

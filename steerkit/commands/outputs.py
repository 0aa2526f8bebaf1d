"""Folders of results: all files of a run appear together, or none does."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steerkit.commands.console import plain_numbers
from steerkit.errors import OutputError


@contextmanager
def staged(folder: Path, names: Sequence[str], *, force: bool) -> Iterator[Path]:
    """Yield a temporary folder; move the files in it into `folder` only if all went well.

    Opened before the work starts, so that an unwritable place is known at once.

    Args:
        folder: where the files are to stand; made if missing.
        names: the files that the run will write.
        force: replace those that stand there already.

    Raises:
        OutputError: the place cannot be written to, or holds one of the files.
    """
    check_free([folder / name for name in names], force=force)
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    temporary = folder / f".steerkit-{uuid.uuid4().hex[:8]}"
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        _remove_empty(made)
        raise OutputError(
            f"cannot write to {folder}: {error.strerror or error}; choose another --out"
        ) from error
    done = False
    try:
        yield temporary
        for file in sorted(temporary.iterdir()):
            file.replace(folder / file.name)
        done = True
    except OSError as error:
        raise OutputError(
            f"cannot write to {folder}: {error.strerror or error}; choose another --out"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not done:
            _remove_empty(made)


def write_result(
    folder: Path, name: str, numbers: Mapping[str, Any], figure: Any, *, title: str
) -> None:
    """Write a result's numbers as `name.json` and its plotly figure as the page `name.html`."""
    from steerkit.files import write_text
    from steerkit.plotting.style import to_page

    write_text(folder / f"{name}.json", json.dumps(plain_numbers(numbers), indent=1))
    write_text(folder / f"{name}.html", to_page(figure, title=title))


def check_free(files: Sequence[Path], *, force: bool) -> None:
    """Refuse, before any work, files that exist (unless forced) or that cannot be written.

    Raises:
        OutputError: saying which, and what to do.
    """
    for file in files:
        if file.exists() and not force:
            raise OutputError(f"{file} exists; pass --force to replace it, or choose another --out")
        if file.is_dir():
            raise OutputError(f"{file} is a folder, expected a file; choose another --out")
        parent = next(p for p in file.absolute().parents if p.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise OutputError(f"cannot write to {file.parent}: {parent} is not a writable folder")


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

"""Files one can trust: safetensors with a JSON header, written whole or not at all."""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from steerkit import mapped
from steerkit.errors import OutputError

FORMAT_VERSION = 1


@contextmanager
def written_whole(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it into place only if all went well.

    Args:
        path: where the file is to appear.
        durable: wait until the disk has it. Without, a power cut may leave it damaged: for
            files that whoever reads them checks by their hash.

    Raises:
        OutputError: when the place cannot be written to. Nothing half-written is left.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            with temporary.open("rb") as done:
                os.fsync(done.fileno())
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        if isinstance(error, FileExistsError | NotADirectoryError):
            reason = "a file stands where its folder should be"
        raise OutputError(
            f"cannot write {path}: {reason}; choose a folder that exists, is writable and has space"
        ) from error
    finally:
        temporary.unlink(missing_ok=True) if temporary.parent.is_dir() else None


def write_text(path: Path, text: str) -> Path:
    """Write a text file whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_tensors(
    path: Path, kind: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> Path:
    """Write tensors and a JSON header as one safetensors file of the given kind.

    The header stands in the file's `__metadata__` under the key `steerkit`.
    """
    from safetensors.torch import save_file

    meta = json.dumps({"kind": kind, "format_version": FORMAT_VERSION, **header}, sort_keys=True)
    with written_whole(path) as temporary:
        try:
            save_file(
                {k: v.contiguous().cpu() for k, v in tensors.items()},
                temporary,
                {"steerkit": meta},
            )
        except OSError:
            raise
        except Exception as error:  # safetensors wraps I/O failures in its own error type
            raise OSError(str(error)) from error
    return path


@contextmanager
def tensors_on_disk(
    path: Path, kind: str, layout: mapped.Layout, header: Mapping[str, Any]
) -> Iterator[dict[str, Tensor]]:
    """Yield writable, memory-mapped tensors of a file that appears whole when the block ends.

    For tensors larger than memory; the file is like one that `write_tensors` writes.
    """
    meta = json.dumps({"kind": kind, "format_version": FORMAT_VERSION, **header}, sort_keys=True)
    with written_whole(path) as temporary:
        yield mapped.create(temporary, layout, {"steerkit": meta})


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from error


def read_json(path: Path, kind: str) -> dict[str, Any]:
    """Read a JSON file of the given kind, such as a manifest."""
    if not path.is_file():
        raise OutputError(f"no {kind} file at {path}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} is not a readable {kind} ({error})") from error
    if not isinstance(data, dict) or data.get("kind") != kind:
        raise OutputError(f"{path} is not a {kind} written by steerkit")
    return data


def read_header(path: Path, kind: str) -> dict[str, Any]:
    """The JSON header alone, checked for kind and version."""
    if not path.is_file():
        raise OutputError(f"no {kind} file at {path}")
    try:
        meta = mapped.parse(path)[0].get("__metadata__", {})
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{path} is not a complete safetensors file ({error}); write it again"
        ) from error
    if "steerkit" not in meta:
        raise OutputError(f"{path} was not written by steerkit: it has no steerkit header")
    try:
        header: dict[str, Any] = json.loads(meta["steerkit"])
    except ValueError as error:
        raise OutputError(f"the steerkit header of {path} is not valid JSON: {error}") from error
    if header.get("kind") != kind:
        raise OutputError(f"{path} holds {header.get('kind')}, not {kind}")
    if header.get("format_version", 0) > FORMAT_VERSION:
        raise OutputError(
            f"{path} has format version {header['format_version']}; this steerkit reads up to "
            f"{FORMAT_VERSION}: upgrade steerkit"
        )
    return header


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON header of a file written by `write_tensors`.

    The tensors are mapped, not read: a file larger than memory opens at once, and pages
    are read when touched. Writing to them changes memory, never the file.
    """
    header = read_header(path, kind)
    return mapped.read(path), header

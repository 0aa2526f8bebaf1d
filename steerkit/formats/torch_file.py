"""The one door to `.pt` files: tensors and plain values, never code, never past what is stored.

`torch.load` runs in its weights-only mode, which builds tensors from an allow-list. Beside
that, a file is refused whose records are compressed or cut off, or whose tensors claim more
values than were stored. What steerkit keeps is one more record of the archive, which
`torch.load` passes over.
"""

import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerkit.errors import OutputError

KEPT = "steerkit.json"
"""Name of our record in the archive."""


def load(path: Path) -> tuple[Any, dict[str, Any]]:
    """What a file holds, and what steerkit kept beside it (empty where it did not).

    Raises:
        OutputError: not such a file, a damaged one, or one that wants to run code.
    """
    sizes, kept = _records(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the damaged part makes it raise
        raise OutputError(_reason(path, error)) from error
    for tensor in _tensors(path, found):
        _check(path, tensor, sizes)
    return found, kept


def save(path: Path, value: Any, kept: Mapping[str, Any]) -> None:
    """Write tensors and plain values as `torch.save` does, with our record beside them."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with zipfile.ZipFile(buffer, "a") as archive:
        top = archive.infolist()[0].filename.split("/")[0]
        record = zipfile.ZipInfo(f"{top}/{KEPT}")
        archive.writestr(record, json.dumps(kept, sort_keys=True))
    path.write_bytes(buffer.getvalue())


def owned(values: Tensor) -> Tensor:
    """A copy with a storage of its own: saving a view would save the whole it is taken from."""
    return values.detach().to("cpu", torch.float32).contiguous().clone()


def _records(path: Path) -> tuple[set[int], dict[str, Any]]:
    """Sizes of the archive's records, in bytes, and our own."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            packed = [e.filename for e in entries if e.compress_type != zipfile.ZIP_STORED]
            if packed or sum(e.file_size for e in entries) > path.stat().st_size:
                raise OutputError(
                    f"{path} has records that are compressed or larger than the file, which "
                    "torch.save never writes; it was not opened"
                )
            ours = [e for e in entries if e.filename.split("/")[-1] == KEPT]
            kept = json.loads(archive.read(ours[0])) if ours else {}
            return {e.file_size for e in entries}, kept if isinstance(kept, dict) else {}
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise OutputError(
            f"{path} is not a complete .pt file ({error}). Files from before PyTorch 1.6 are not "
            "read: load them where they are trusted and save them again"
        ) from error


def _reason(path: Path, error: Exception) -> str:
    if type(error).__name__ == "UnpicklingError":
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({named[1]})" if named else ""
        return (
            f"{path} holds more than tensors and plain values{what}: such a file can run any "
            "code when it is loaded, so it was not loaded. Ask its maker for tensors alone, saved "
            "with torch.save"
        )
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{path} is damaged or not written by torch.save: {first}"


def _tensors(path: Path, value: Any, depth: int = 0) -> Iterator[Tensor]:
    """Every tensor, however it is nested; a value may hold itself, so not without end."""
    if depth > 20:
        raise OutputError(f"{path} nests more than 20 deep, which no file of vectors does")
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(path, inner, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(path, inner, depth + 1)


def _check(path: Path, tensor: Tensor, sizes: set[int]) -> None:
    """Refuse a tensor that is not backed, value by value, by a record of the file."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise OutputError(f"{path} holds a {tensor.layout} tensor on {tensor.device}, no plain one")
    stored = tensor.untyped_storage().nbytes()
    if stored not in sizes or tensor.numel() * tensor.element_size() > stored:
        raise OutputError(
            f"{path} holds a tensor of shape {tuple(tensor.shape)} over {stored} stored bytes, "
            "which does not add up; it was not read"
        )

"""Safetensors files as memory-mapped tensors: files larger than memory, opened at once.

The safetensors library maps a file as private writable memory, which a system refuses where
the file is larger than its memory, and it writes only from tensors that it is given whole.
The format is simple (8 bytes of header length, a JSON header of dtypes, shapes and offsets,
the bytes), so both ends are done here.
"""

import json
import math
import mmap
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Layout = Mapping[str, tuple[torch.dtype, Sequence[int]]]

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The element types that are read and written, by their names in the format."""

# Private pages are charged to memory unless asked otherwise; Python names the flag from 3.13.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def parse(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and where its data begins.

    Raises:
        ValueError: it is not a complete safetensors file; says why.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError("its header is cut off")
        entries: dict[str, Any] = json.loads(file.read(length))
    try:
        tensors = [entry for name, entry in entries.items() if name != "__metadata__"]
        spans = sorted(tuple(entry["data_offsets"]) for entry in tensors)
        sizes = sorted(
            DTYPES[entry["dtype"]].itemsize * math.prod(entry["shape"]) for entry in tensors
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"its header is malformed: {error!r}") from error
    ends = [0, *(stop for _, stop in spans)]
    if [start for start, _ in spans] != ends[:-1] or sizes != sorted(b - a for a, b in spans):
        raise ValueError("its header does not add up")
    if size != 8 + length + ends[-1]:
        raise ValueError(f"it has {size} bytes where {8 + length + ends[-1]} are expected")
    return entries, 8 + length


def read(path: Path) -> dict[str, Tensor]:
    """All tensors, mapped: read from disk when touched; writing to them changes memory only."""
    entries, begin = parse(path)
    with path.open("rb") as file:
        if sys.platform == "win32":
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        else:
            flags = mmap.MAP_PRIVATE | _NORESERVE
            view = mmap.mmap(file.fileno(), 0, flags, mmap.PROT_READ | mmap.PROT_WRITE)
    return {
        name: _tensor(
            view, DTYPES[entry["dtype"]], entry["shape"], begin + entry["data_offsets"][0]
        )
        for name, entry in entries.items()
        if name != "__metadata__"
    }


def create(path: Path, layout: Layout, metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """Write a file's header, reserve its space, and map its tensors for writing.

    Reserving first makes a full disk an error now, not a crash at some later write.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    # Widest elements first, so that every tensor starts at a multiple of its element size.
    for name in sorted(layout, key=lambda n: (-layout[n][0].itemsize, n)):
        dtype, shape = layout[name]
        start, end = end, end + dtype.itemsize * math.prod(shape)
        entries[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [start, end]}
    head = json.dumps(entries).encode()
    head += b" " * (-len(head) % 8)
    begin = 8 + len(head)
    with path.open("w+b") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.flush()
        if end and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), begin, end)
        else:
            os.ftruncate(file.fileno(), begin + end)
        view = mmap.mmap(file.fileno(), begin + end)
    return {
        name: _tensor(view, dtype, shape, begin + entries[name]["data_offsets"][0])
        for name, (dtype, shape) in layout.items()
    }


def _tensor(view: mmap.mmap, dtype: torch.dtype, shape: Sequence[int], offset: int) -> Tensor:
    count = math.prod(shape)
    if count == 0:
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.frombuffer(view, dtype=dtype, count=count, offset=offset).reshape(tuple(shape))

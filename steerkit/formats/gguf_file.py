"""The GGUF container: metadata and plain float tensors, read without trusting a single number.

Layout (little-endian): magic `GGUF`, version u32, number of tensors and of metadata pairs
u64; the pairs (key, type u32, value); for each tensor its name, number of dimensions u32,
dimensions u64, type u32 and offset u64; zeros up to a multiple of the alignment; the data,
each tensor starting at a multiple of the alignment. A string is its length u64 and UTF-8.

Source: the GGUF specification of the ggml project, versions 2 and 3.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

MAGIC = b"GGUF"
ALIGNMENT = 32
U32, STRING, ARRAY = 4, 8, 9
SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
"""Type numbers of single values, and how struct reads them."""

DTYPES = {0: torch.float32, 1: torch.float16, 28: torch.float64, 30: torch.bfloat16}
"""The tensor types that hold plain floats."""

_PAIR_BYTES, _TENSOR_BYTES = 13, 24
"""The least that a metadata pair and a tensor's entry can take; bounds what a count claims."""


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor of a file is and what it is."""

    shape: tuple[int, ...]
    """Innermost dimension first, as the format has it."""
    type: int
    offset: int
    """In bytes, from the start of the data."""


@dataclass(frozen=True)
class Header:
    """Everything in a GGUF file but the data. Arrays of metadata are kept as their length."""

    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    data: int
    """Where the data begins, in bytes from the start of the file."""


def parse(path: Path) -> Header:
    """The header of a file, every count and offset checked against the file's size.

    Raises:
        ValueError: it is not a complete GGUF file; says why.
    """
    with path.open("rb") as file:
        reader = _Reader(file, path.stat().st_size)
        magic = reader.take(4, "magic")
        if magic != MAGIC:
            raise ValueError(f"it begins with {magic!r}, not with {MAGIC!r}")
        version = reader.number("<I", "version")
        if version not in (2, 3):
            why = "is big-endian" if version in (2 << 24, 3 << 24) else "is not read here"
            raise ValueError(f"its version {version} {why}; versions 2 and 3, little-endian, are")
        n_tensors = reader.count(_TENSOR_BYTES, "tensors")
        n_pairs = reader.count(_PAIR_BYTES, "metadata pairs")
        metadata: dict[str, Any] = {}
        for _ in range(n_pairs):
            key = reader.string("metadata key")
            if key in metadata:
                raise ValueError(f"its metadata has '{key}' twice")
            metadata[key] = reader.value(reader.number("<I", f"type of '{key}'"), key)
        tensors: dict[str, TensorEntry] = {}
        for _ in range(n_tensors):
            name = reader.string("tensor name")
            if name in tensors:
                raise ValueError(f"it has the tensor '{name}' twice")
            tensors[name] = reader.entry(name)
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
            raise ValueError(f"its alignment is {alignment}, not a power of two from 8")
        data = -(-file.tell() // alignment) * alignment
    for name, found in tensors.items():
        if found.offset % alignment:
            raise ValueError(f"'{name}' starts at {found.offset}, no multiple of {alignment}")
    return Header(version, metadata, tensors, data)


def read_tensor(path: Path, header: Header, name: str) -> Tensor:
    """One tensor, flat, in its own float type.

    Raises:
        ValueError: it is not of plain floats, or runs past the end of the file.
    """
    found = header.tensors[name]
    if found.type not in DTYPES:
        raise ValueError(
            f"'{name}' is of type {found.type}, which is quantised or no float; "
            "F32, F16, BF16 and F64 are read"
        )
    dtype = DTYPES[found.type]
    length = math.prod(found.shape) * dtype.itemsize
    begin, size = header.data + found.offset, path.stat().st_size
    if begin + length > size:
        raise ValueError(
            f"'{name}' needs bytes {begin} to {begin + length}, but the file has {size}: it is "
            "cut off or its shape is wrong"
        )
    with path.open("rb") as file:
        file.seek(begin)
        return torch.frombuffer(bytearray(file.read(length)), dtype=dtype)


def write(path: Path, metadata: Mapping[str, str | int], tensors: Mapping[str, Tensor]) -> None:
    """Write strings, unsigned 32-bit numbers and float32 vectors as GGUF version 3."""
    pairs = b"".join(
        _string(key) + (_typed(STRING, _string(v)) if isinstance(v, str) else _typed(U32, _u32(v)))
        for key, v in metadata.items()
    )
    rows = [v.detach().to("cpu", torch.float32).contiguous() for v in tensors.values()]
    entries, offset = [], 0
    for name, row in zip(tensors, rows, strict=True):
        entries.append(_string(name) + struct.pack("<IQIQ", 1, row.numel(), 0, offset))
        offset += -(-row.numel() * 4 // ALIGNMENT) * ALIGNMENT
    head = struct.pack("<4sIQQ", MAGIC, 3, len(rows), len(metadata)) + pairs + b"".join(entries)
    blocks: Sequence[bytes] = [head, *(row.numpy().astype("<f4").tobytes() for row in rows)]
    path.write_bytes(b"".join(block + b"\0" * (-len(block) % ALIGNMENT) for block in blocks))


class _Reader:
    """Reads values in turn and never more than the file holds."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def take(self, n: int, what: str) -> bytes:
        """The next n bytes."""
        self._room(n, what)
        return self._file.read(n)

    def number(self, kind: str, what: str) -> Any:
        """One number."""
        return struct.unpack(kind, self.take(struct.calcsize(kind), what))[0]

    def count(self, least: int, what: str) -> int:
        """How many of something follow, each of at least so many bytes."""
        n: int = self.number("<Q", f"number of {what}")
        self._room(n * least, f"{n} {what}")
        return n

    def string(self, what: str) -> str:
        """A length and so many bytes of UTF-8."""
        try:
            return self.take(self.number("<Q", what), what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"its {what} is not UTF-8") from error

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        """A metadata value; an array is passed over and known by its length alone."""
        if kind in SCALARS:
            return self.number(SCALARS[kind], f"'{what}'")
        if kind == STRING:
            return self.string(f"'{what}'")
        if kind != ARRAY or depth > 3:
            raise ValueError(f"its metadata '{what}' is of an unknown type {kind}")
        inner = self.number("<I", f"'{what}'")
        if inner in SCALARS:
            size = struct.calcsize(SCALARS[inner])
            n = self.count(size, f"values of '{what}'")
            self._file.seek(n * size, 1)
            return n
        n = self.count(8, f"values of '{what}'")
        for _ in range(n):
            self.value(inner, what, depth + 1)
        return n

    def entry(self, name: str) -> TensorEntry:
        """Shape, type and offset of a tensor."""
        n_dims = self.number("<I", f"'{name}'")
        if not 1 <= n_dims <= 4:
            raise ValueError(f"'{name}' has {n_dims} dimensions; the format allows 1 to 4")
        shape = tuple(self.number("<Q", f"'{name}'") for _ in range(n_dims))
        return TensorEntry(shape, self.number("<I", f"'{name}'"), self.number("<Q", f"'{name}'"))

    def _room(self, n: int, what: str) -> None:
        left = self._size - self._file.tell()
        if n > left:
            raise ValueError(f"it is cut off: {what} would take {n} bytes where {left} are left")


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _u32(value: int) -> bytes:
    return struct.pack("<I", value)


def _typed(kind: int, value: bytes) -> bytes:
    return _u32(kind) + value

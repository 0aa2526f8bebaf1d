"""A dataset's prompts put into a store's folder, in the ranges that become its shards."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from steerkit.errors import OutputError
from steerkit.files import sha256_of, written_whole
from steerkit.stores.manifest import Folder, Part
from steerkit.stores.texts import Row


def stage(folder: Folder, rows: Iterable[Row], rows_per_shard: int) -> tuple[tuple[Part, ...], str]:
    """Write the prompts of a new store; its parts, and the fingerprint of all of them.

    Memory: the rows of one shard.
    """
    parts = []
    total = hashlib.sha256()
    for part, data in _parts(rows, rows_per_shard):
        total.update(data)
        _write(folder.path / part.file, data)
        parts.append(part)
    return tuple(parts), total.hexdigest()


def check(
    folder: Folder, rows: Iterable[Row], rows_per_shard: int, expected: tuple[Part, ...]
) -> None:
    """Compare a dataset with what a store holds; write again what was lost.

    Raises:
        OutputError: the dataset is another one; names the first rows that differ.
    """
    number = -1
    for number, (part, data) in enumerate(_parts(rows, rows_per_shard)):
        if number >= len(expected) or part != expected[number]:
            raise OutputError(
                f"{folder.path} holds another dataset: it differs in rows {part.start} to "
                f"{part.stop - 1}; choose another folder, or give the dataset that it was begun "
                "with, with the same limit, template, max_tokens and on_bad_row"
            )
        path = folder.path / part.file
        if not path.is_file() or sha256_of(path) != part.sha256:
            _write(path, data)
    if number + 1 != len(expected):
        raise OutputError(
            f"{folder.path} holds another dataset: it has {expected[-1].stop} rows, and this one "
            f"{expected[number].stop if number >= 0 else 0}; choose another folder, or give the "
            "same dataset and limit"
        )


def _parts(rows: Iterable[Row], size: int) -> Iterator[tuple[Part, bytes]]:
    rows, start = iter(rows), 0
    while chunk := list(islice(rows, size)):
        data = b"".join(row.line(start + i) for i, row in enumerate(chunk))
        characters = sum(len(row.prompt.text) + len(row.prompt.answer) for row in chunk)
        digest = hashlib.sha256(data).hexdigest()
        yield Part(start, start + len(chunk), characters, digest), data
        start += len(chunk)


def _write(path: Path, data: bytes) -> None:
    # Workers compare its hash, and the dataset is there to make it anew.
    with written_whole(path, durable=False) as temporary:
        temporary.write_bytes(data)

"""One driver a folder: the second is refused; the lock of a dead process is free."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from steerkit.errors import OutputError

_held: set[Path] = set()
_guard = threading.Lock()


@contextmanager
def driver_lock(folder: Path) -> Iterator[None]:
    """Hold a folder for this process while the block runs.

    The operating system keeps the lock and drops it when the process ends, however it ends, so
    that nothing is left to be cleaned up. Processes that a driver starts do not inherit it.
    On a network file system it holds between machines where that file system has locks.

    Raises:
        OutputError: another driver works on the folder (says which), or it cannot be written.
    """
    path = folder.resolve() / "lock"
    with _guard:
        # The system's lock is the process's own: it would let a second thread in.
        if path in _held:
            raise OutputError(_busy(folder, "this process"))
        _held.add(path)
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise OutputError(
                f"cannot write to {folder}: {error.strerror or error}; choose another folder"
            ) from error
        with file:
            if not _lock(file):
                raise OutputError(_busy(folder, _holder(path)))
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            file.flush()
            yield
    finally:
        with _guard:
            _held.discard(path)


def _busy(folder: Path, who: str) -> str:
    return (
        f"another capture is writing to {folder} ({who}); wait until it has ended, or choose "
        "another folder. Reading the store is possible meanwhile"
    )


def _holder(path: Path) -> str:
    with suppress(OSError, ValueError, KeyError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return f"process {found['pid']} on {found['host']}"
    return "another process"


def _lock(file: IO[str]) -> bool:
    """Take the system's lock of a file; False where another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            file.seek(1 << 30)  # what others read is not what is locked
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        raise OutputError(
            f"{file.name} cannot be locked ({error.strerror or error}), so that two captures "
            "could mix there; choose a folder on a file system with locks"
        ) from error
    return True

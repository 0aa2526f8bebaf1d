"""Steering files that requests may ask for: by name, kept by content, seen by every process.

A server is several processes (front ends, engine, workers), and a file may be replaced while
requests that asked for it are under way. So what is registered is copied into one folder under
the hash of its bytes, and never changes there. A name is a small file that holds such a hash:
registering, and listing what there is, works from any process, at any time.
"""

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from steerkit.errors import InterventionError, OutputError
from steerkit.files import sha256_of, write_text, written_whole
from steerkit.interventions import load_steering
from steerkit.interventions.artefact import Steering
from steerkit.registry import suggest

FOLDER = "STEERKIT_VLLM_FOLDER"
"""Environment variable: where the artefacts of a server lie."""
AT_START = "STEERKIT_VLLM_ARTEFACTS"
"""Environment variable: artefacts to register at start, `name=path` separated by `;`."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,127}")
_HASH = re.compile(r"[0-9a-f]{64}")


class Artefacts:
    """The steering files of a server.

    Args:
        folder: where they are kept; made when it is first needed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._known: dict[tuple[str, int, int, int], str] = {}

    def register(self, name: str, path: str | Path) -> str:
        """Keep a steering file under a name; gives the hash of its content.

        A name that is there already names the new file from now on: requests under way keep
        what they asked for.

        Raises:
            OutputError: no such file, or no complete steering file.
            InterventionError: a name that is none.
        """
        if not _NAME.fullmatch(name):
            raise InterventionError(
                f"an artefact's name is made of letters, digits, '.', '_' and '-'; got '{name}'"
            )
        digest = self.keep(path)
        write_text(self.folder / "names" / name, digest)
        return digest

    def forget(self, name: str) -> None:
        """Take a name away; requests under way are not touched.

        Raises:
            InterventionError: no such name.
        """
        self.named(name)
        (self.folder / "names" / name).unlink(missing_ok=True)

    @property
    def names(self) -> Mapping[str, str]:
        """Hashes by name."""
        folder = self.folder / "names"
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        return {path.name: path.read_text() for path in found if _NAME.fullmatch(path.name)}

    def named(self, name: str) -> str:
        """The hash of what a name stands for.

        Raises:
            InterventionError: no such name, with those that there are.
        """
        try:
            if _NAME.fullmatch(name):
                return (self.folder / "names" / name).read_text()
        except OSError:
            pass
        there = list(self.names)
        hint = suggest(name, there) if there else "none is registered"
        raise InterventionError(
            f"no artefact named '{name}' is registered here; {hint}. Register one with "
            f"steerkit.vllm.artefacts().register(name, path), or start with {AT_START}=name=path"
        )

    def keep(self, path: str | Path) -> str:
        """Copy a steering file to where nothing changes it; gives the hash of its content.

        Raises:
            OutputError: no such file, or no complete steering file.
        """
        source = Path(path).expanduser()
        try:
            stat = source.stat()
        except OSError as error:
            raise OutputError(f"no steering file at {source}: {error.strerror}") from error
        # A request may bring a path: looking whether it is the same file costs microseconds.
        key = (str(source.absolute()), stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if key not in self._known:
            load_steering(source)
            digest = sha256_of(source)
            kept = self.path(digest)
            if not kept.is_file():
                with written_whole(kept) as temporary:
                    shutil.copyfile(source, temporary)
            self._known[key] = digest
        return self._known[key]

    def path(self, digest: str) -> Path:
        """Where the content with this hash lies."""
        if not _HASH.fullmatch(digest):
            raise InterventionError(f"'{digest[:80]}' is not the hash of a steering file")
        return self.folder / f"{digest}.safetensors"

    def open(self, digest: str) -> tuple[Steering, ...]:
        """The interventions of a kept file.

        Raises:
            OutputError: it is gone, or not what it was.
        """
        path = self.path(digest)
        return _opened(path, digest)


@lru_cache(maxsize=256)
def _opened(path: Path, digest: str) -> tuple[Steering, ...]:
    if sha256_of(path) != digest:
        raise OutputError(f"{path} is not the file that was registered; register it again")
    return load_steering(path)


def artefacts() -> Artefacts:
    """The artefacts of this server, the same in all its processes.

    Without `STEERKIT_VLLM_FOLDER`, a folder for as long as this process lives; the processes
    that it starts inherit it.
    """
    folder = os.environ.get(FOLDER)
    if folder is None:
        folder = os.environ[FOLDER] = tempfile.mkdtemp(prefix="steerkit-vllm-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return _shared(folder)


@lru_cache(maxsize=8)
def _shared(folder: str) -> Artefacts:
    made = Artefacts(folder)
    for entry in filter(None, os.environ.get(AT_START, "").split(";")):
        name, equals, path = entry.partition("=")
        if not equals:
            raise InterventionError(
                f"{AT_START} holds name=path entries separated by ';'; got '{entry}'"
            )
        made.register(name.strip(), path.strip())
    return made

"""Steering files that requests may ask for: by name, kept by content, seen by every process.

A server is several processes (front ends, engine, workers), and a file may be replaced while
requests that asked for it are under way. So what is registered is copied into one folder under
the hash of its bytes, and never changes there. A name is a small file that holds such a hash,
and a strength where one is in force: registering, changing a strength, naming a default and
listing what there is work from any process, at any time. Requests under way keep the content
and the strength that they began with.
"""

import atexit
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from steerkit.errors import InterventionError, OutputError
from steerkit.files import sha256_of, write_text, written_whole
from steerkit.interventions import load_steering
from steerkit.interventions.artefact import Steering
from steerkit.interventions.operator import finite
from steerkit.registry import suggest

FOLDER = "STEERKIT_VLLM_FOLDER"
"""Environment variable: where the artefacts of a server lie."""
AT_START = "STEERKIT_VLLM_ARTEFACTS"
"""Environment variable: artefacts to register at start, `name=path` separated by `;`."""
DEFAULT = "STEERKIT_VLLM_DEFAULT"
"""Environment variable: the default at start, `name` or `name:strength`."""
PATHS = "STEERKIT_VLLM_PATHS"
"""Environment variable: whether requests may name files by path; 1 or 0."""
NONE = "none"
"""What a request says that wants no steering, whatever the default; never a name."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,127}")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Registration:
    """What a name stands for.

    Attributes:
        digest: sha256 of the file.
        strength: in force in place of each intervention's own; None for theirs.
    """

    digest: str
    strength: float | None = None


class Artefacts:
    """The steering files of a server.

    Args:
        folder: where they are kept; made when it is first needed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._names = self.folder / "names"
        self._default = self.folder / "default"
        self._known: dict[tuple[str, int, int, int], str] = {}

    def register(self, name: str, path: str | Path, *, strength: float | None = None) -> str:
        """Keep a steering file under a name; gives the hash of its content.

        A name that is there already names the new file from now on, at this strength:
        requests under way keep what they asked for.

        Args:
            name: of letters, digits, '.', '_' and '-'.
            path: the file.
            strength: in place of each intervention's own; None for theirs.

        Raises:
            OutputError: no such file, or no complete steering file.
            InterventionError: a name that is none, or the reserved one.
        """
        if not _NAME.fullmatch(name):
            raise InterventionError(
                f"an artefact's name is made of letters, digits, '.', '_' and '-'; got '{name}'"
            )
        if name == NONE:
            raise InterventionError(
                f"'{NONE}' is what requests say that want no steering; choose another name"
            )
        wanted = None if strength is None else finite("strength", strength)
        made = Registration(self._copied(Path(path).expanduser()), wanted)
        with self._writing():
            self._write(name, made)
        return made.digest

    def set_strength(self, name: str, strength: float | None) -> None:
        """Put a strength in force for a name; new requests get it at once.

        A strength that a request brings itself still counts; requests under way keep theirs.

        Args:
            name: of an artefact.
            strength: in place of each intervention's own; None for theirs again.

        Raises:
            InterventionError: no such name, or a strength that is not finite.
        """
        wanted = None if strength is None else finite("strength", strength)
        with self._writing():
            self._write(name, Registration(self.registration(name).digest, wanted))

    def forget(self, name: str) -> None:
        """Take a name away; requests under way are not touched.

        Raises:
            InterventionError: no such name, or the one that is the default.
        """
        with self._writing():
            self.registration(name)
            if (self.default or {}).get("artefact") == name:
                raise InterventionError(
                    f"'{name}' is the default, and requests that say nothing would all be "
                    "refused; set another default, or none, and then forget it"
                )
            (self._names / name).unlink(missing_ok=True)

    @property
    def registrations(self) -> Mapping[str, Registration]:
        """What there is, by name."""
        there = sorted(self._names.iterdir()) if self._names.is_dir() else []
        return {path.name: _parsed(path) for path in there if _NAME.fullmatch(path.name)}

    @property
    def names(self) -> Mapping[str, str]:
        """Hashes by name."""
        return {name: one.digest for name, one in self.registrations.items()}

    def registration(self, name: str) -> Registration:
        """What a name stands for.

        Raises:
            InterventionError: no such name, with those that there are.
        """
        try:
            if _NAME.fullmatch(name):
                return _parsed(self._names / name)
        except OSError:
            pass
        there = list(self.names)
        hint = suggest(name, there) if there else "none is registered"
        raise InterventionError(
            f"no artefact named '{name}' is registered here; {hint}. Register one with "
            f"steerkit.vllm.artefacts().register(name, path), with steerkit artefacts register, "
            f"or start with {AT_START}=name=path"
        )

    def named(self, name: str) -> str:
        """The hash of what a name stands for; raises as `registration` does."""
        return self.registration(name).digest

    def asked(self, wanted: str) -> Registration:
        """What a request names.

        Args:
            wanted: a name, or a path where this process takes paths.

        Raises:
            InterventionError: no such name, or a path that is not taken.
            OutputError: a path that is no steering file.
        """
        if "/" not in wanted:
            return self.registration(wanted)
        if not paths_are_taken():
            raise InterventionError(
                "this server takes artefacts by name and no paths; register the file with "
                f"steerkit artefacts register, or start the server with {PATHS}=1 where every "
                "client may learn which files there are"
            )
        return Registration(self.keep(wanted))

    def set_default(self, name: str | None, strength: float | None = None) -> None:
        """Steer new requests that say nothing about their steering; None for none of them.

        Args:
            name: of an artefact.
            strength: in place of the name's; None for that.

        Raises:
            InterventionError: no such name, or a strength that is not finite.
        """
        with self._writing():
            if name is None:
                self._default.unlink(missing_ok=True)
                return
            self.registration(name)
            made: dict[str, Any] = {"artefact": name}
            if strength is not None:
                made["strength"] = finite("strength", strength)
            write_text(self._default, json.dumps(made))

    @property
    def has_default(self) -> bool:
        """Whether there is a default: one look at the folder."""
        return self._default.exists()

    @property
    def default(self) -> dict[str, Any] | None:
        """What requests that say nothing are taken to say; None where there is no default.

        Raises:
            OutputError: a damaged file.
        """
        try:
            found = json.loads(self._default.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise OutputError(
                f"{self._default} is damaged ({error}); set the default again"
            ) from error
        return dict(found)

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
            self._known[key] = self._copied(source)
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

    def _copied(self, source: Path) -> str:
        if not source.is_file():
            raise OutputError(f"no steering file at {source}")
        load_steering(source)
        digest = sha256_of(source)
        kept = self.path(digest)
        if not kept.is_file() or sha256_of(kept) != digest:
            with written_whole(kept) as temporary:
                shutil.copyfile(source, temporary)
        return digest

    def _write(self, name: str, made: Registration) -> None:
        # Hash and strength are one file, so that nobody ever sees the one without the other.
        text = made.digest if made.strength is None else f"{made.digest} {made.strength!r}"
        write_text(self._names / name, text)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One process changes names at a time; readers need not wait."""
        import fcntl

        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _parsed(path: Path) -> Registration:
    digest, _, strength = path.read_text().partition(" ")
    return Registration(digest, float(strength) if strength else None)


@lru_cache(maxsize=256)
def _opened(path: Path, digest: str) -> tuple[Steering, ...]:
    if sha256_of(path) != digest:
        raise OutputError(f"{path} is not the file that was registered; register it again")
    return load_steering(path)


def paths_are_taken() -> bool:
    """Whether requests to this process may name files by path.

    By default they may where whoever asks has a synchronous `LLM` in a process of their own.
    Processes with an asynchronous engine serve others, who would learn which files there are.
    """
    wanted = os.environ.get(PATHS)
    return wanted == "1" if wanted else "vllm.v1.engine.async_llm" not in sys.modules


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
    made.folder.mkdir(parents=True, exist_ok=True)
    for entry in filter(None, os.environ.get(AT_START, "").split(";")):
        name, equals, path = entry.partition("=")
        if not equals:
            raise InterventionError(
                f"{AT_START} holds name=path entries separated by ';'; got '{entry}'"
            )
        made.register(name.strip(), path.strip())
    if wanted := os.environ.get(DEFAULT):
        made.set_default(*default_of(wanted))
    # Processes that this one starts later find it all in the folder, and what was changed
    # meanwhile too.
    for variable in (AT_START, DEFAULT):
        os.environ.pop(variable, None)
    return made


def default_of(text: str) -> tuple[str, float | None]:
    """A default from its text, `name` or `name:strength`.

    Raises:
        InterventionError: a strength that is no number.

    >>> default_of("joy"), default_of("joy:0.5")
    (('joy', None), ('joy', 0.5))
    """
    name, colon, strength = text.partition(":")
    try:
        return name, finite("strength", float(strength)) if colon else None
    except ValueError as error:
        raise InterventionError(
            f"a default reads 'name' or 'name:strength'; got '{text}'"
        ) from error

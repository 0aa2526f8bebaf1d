"""What a search has measured, on disk as it goes: an interrupted one goes on where it stood."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerkit.errors import OutputError


class Checkpoint:
    """Measurements by name, one JSON object a line, after a line that says of which search.

    Each is on disk before the next is taken. A last line that was cut short is measured again.
    Without a path nothing is kept.

    Args:
        path: the file; made if it is not there.
        of: everything that decides what the measurements are.

    Raises:
        OutputError: the file is of another search, or is not such a file.
    """

    def __init__(self, path: str | Path | None, of: Mapping[str, Any]) -> None:
        self.path = Path(path) if path else None
        self.found: dict[str, Any] = {}
        self._asked = {k: _digest(v) for k, v in of.items()}
        if self.path is None:
            return
        if self.path.exists() and self.path.stat().st_size:
            self._read(self.path)
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._append({"search": self._asked})

    def _read(self, path: Path) -> None:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        try:
            header, *rest = [json.loads(line) for line in whole]
            theirs = header["search"]
            self.found = {entry["name"]: entry["value"] for entry in rest}
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"{path} is not a search's checkpoint ({error}); give another path, or remove it"
            ) from error
        other = sorted(k for k in {*theirs, *self._asked} if theirs.get(k) != self._asked.get(k))
        if other:
            raise OutputError(
                f"the checkpoint {path} is of another search: it differs in {', '.join(other)}; "
                "search as before to go on with it, or give another path"
            )
        if len(whole) < len(lines):
            path.write_text("".join(whole), encoding="utf-8")

    def keep(self, name: str, value: Any) -> Any:
        """Put a measurement on disk; what comes back is as it will be read again."""
        value = json.loads(json.dumps(value))
        self.found[name] = value
        self._append({"name": name, "value": value})
        return value

    def _append(self, entry: Mapping[str, Any]) -> None:
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]

"""Every shard of a store read and compared with its record."""

from dataclasses import dataclass
from typing import Any

from steerkit.errors import OutputError
from steerkit.files import sha256_of
from steerkit.stores.lock import driver_lock
from steerkit.stores.manifest import Folder, Manifest


@dataclass(frozen=True)
class Verification:
    """What reading a whole store has shown.

    Attributes:
        shards: how many there should be.
        sound: how many are, byte for byte, what their workers wrote.
        missing: names of shards that are not finished, or whose file is gone.
        damaged: names of shards whose file is another than its record says.
        damaged_prompts: files of prompts that are missing or changed; running the capture with
            its dataset restores them.
        bytes: how much was read.
        marked: whether the next run of the same capture will make the damaged ones anew.
    """

    shards: int
    sound: int
    missing: tuple[str, ...]
    damaged: tuple[str, ...]
    damaged_prompts: tuple[str, ...]
    bytes: int
    marked: bool

    @property
    def ok(self) -> bool:
        """Whether everything is there and sound."""
        return self.sound == self.shards and not self.damaged_prompts

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {**self.__dict__, "ok": self.ok}

    def summary(self) -> str:
        """One line."""
        text = f"{self.sound} of {self.shards} shards are sound"
        if self.missing:
            text += f", {len(self.missing)} missing"
        if self.damaged:
            text += f", {len(self.damaged)} damaged"
        if self.damaged_prompts:
            text += f", {len(self.damaged_prompts)} files of prompts damaged"
        if not self.ok:
            text += "; run the same capture again to make them anew"
            if self.damaged and not self.marked:
                text += ", after verifying while no other capture writes to the folder"
        return text


def verify(folder: Folder, manifest: Manifest, *, mark: bool) -> Verification:
    """Read every shard and every file of prompts."""
    records = folder.log.read()
    missing, damaged = [], {}
    size = 0
    tasks = manifest.tasks()
    for task in tasks:
        path = folder.path / task.name
        record = records.get(task.name)
        if record is None or not path.is_file():
            missing.append(task.name)
            continue
        size += path.stat().st_size
        found = sha256_of(path)
        if found != record.sha256:
            damaged[task.name] = f"sha256 is {found[:12]}, not {record.sha256[:12]}"
    prompts = tuple(
        part.file
        for part in manifest.parts
        if not (path := folder.path / part.file).is_file() or sha256_of(path) != part.sha256
    )
    marked = False
    if mark and damaged:
        try:
            with driver_lock(folder.path):
                folder.log.withdraw(damaged)
            marked = True
        except OutputError:
            marked = False  # read-only, or a capture is running: the report says so
    sound = len(tasks) - len(missing) - len(damaged)
    return Verification(len(tasks), sound, tuple(missing), tuple(damaged), prompts, size, marked)

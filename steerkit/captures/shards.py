"""Captures larger than memory: one shard a batch while it runs, one mapped file at the end.

    FOLDER/manifest.json             what is captured, its hash, the batches and their rows
    FOLDER/shards/000012.safetensors  one batch, with the hash of its bytes; gone at the end
    FOLDER/activations.safetensors   every row in the caller's order

A shard appears whole or not at all and carries its own checksum, so an interrupted capture
loses at most the batch that was running, and a damaged shard is found and run again. The
last step copies the shards into one file (so the disk briefly holds the values twice),
because one contiguous file can be memory-mapped as an ordinary tensor.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from steerkit.activations import KIND, Activations
from steerkit.batch import Batch
from steerkit.captures.assembly import activations, layout, place, provenance, starts
from steerkit.captures.job import Job, Piece
from steerkit.errors import OutputError
from steerkit.files import (
    FORMAT_VERSION,
    read_json,
    read_tensors,
    sha256_of,
    tensors_on_disk,
    write_tensors,
    write_text,
)

MANIFEST = "capture manifest"
SHARD = "capture shard"
FIELDS = ("values", "prompt_index", "positions", "tokens")


@dataclass(frozen=True)
class Folder:
    """A capture on disk."""

    path: Path

    @property
    def manifest(self) -> Path:
        """What is captured, and whether it is complete."""
        return self.path / "manifest.json"

    @property
    def final(self) -> Path:
        """Every row, once complete."""
        return self.path / "activations.safetensors"

    def shard(self, number: int) -> Path:
        """The file of one batch."""
        return self.path / "shards" / f"{number:06d}.safetensors"

    def begin(self, job: Job, *, resume: bool) -> bool:
        """Make the folder ready for a job; True if it already holds the job's result.

        Raises:
            OutputError: it holds another capture or other files, or cannot be written.
        """
        if not resume:
            self._clear()
        if self.manifest.exists():
            found = read_json(self.manifest, MANIFEST)
            self._require_same(found, job)
            complete = bool(found["complete"]) and self.final.is_file()
            if complete:  # an attempt killed at the very end may have left them
                shutil.rmtree(self.path / "shards", ignore_errors=True)
            return complete
        if self.path.is_dir() and any(self.path.iterdir()):
            raise OutputError(
                f"{self.path} holds files that are not a capture; choose an empty folder"
            )
        self._write_manifest(job, complete=False)
        return False

    def write(self, number: int, piece: Piece, spec_hash: str) -> None:
        """Publish the rows of one batch."""
        header = {"spec_sha256": spec_hash, "batch": number, "sha256": digest(piece)}
        write_tensors(
            self.shard(number), SHARD, {name: getattr(piece, name) for name in FIELDS}, header
        )

    def read(self, number: int, spec_hash: str) -> Piece:
        """The rows of one batch, checked against their checksum.

        Raises:
            OutputError: the shard is missing, truncated, damaged or another capture's.
        """
        path = self.shard(number)
        tensors, header = read_tensors(path, SHARD)
        piece = Piece(**{name: tensors[name] for name in FIELDS})
        if header["spec_sha256"] != spec_hash or header["batch"] != number:
            raise OutputError(f"{path} belongs to another capture; delete it and run again")
        if header["sha256"] != digest(piece):
            raise OutputError(f"{path} is damaged (its checksum differs); run again to redo it")
        return piece

    def done(self, job: Job) -> dict[int, Tensor]:
        """Batches with a sound shard, and how many rows each gave to every prompt it holds."""
        spec_hash = spec_sha256(job)
        found: dict[int, Tensor] = {}
        for number in range(len(job.batches)):
            if self.shard(number).exists():
                try:
                    found[number] = row_counts(self.read(number, spec_hash), job.batches[number])
                except OutputError:
                    continue  # it is run again, and its shard replaced
        return found

    def finish(self, job: Job, rows: Mapping[int, Tensor], began: float, resumed: int) -> None:
        """Copy all shards into one file in the caller's order, then remove them."""
        spec_hash = spec_sha256(job)
        counts = torch.zeros(len(job.prompts), dtype=torch.long)
        for number, batch in enumerate(job.batches):
            counts[batch.rows.cpu()] = rows[number]
        total = int(counts.sum())
        # Only the header and the prompts come from here: a meta tensor has a shape and no bytes.
        stand_ins = {
            name: torch.empty(shape, dtype=dtype, device="meta")
            for name, (dtype, shape) in layout(total, job).items()
        }
        about, header = activations(
            job, stand_ins, provenance(job, total, began, batches_resumed=resumed)
        ).to_file()
        shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in about.items()}
        with tensors_on_disk(self.final, KIND, shapes, header) as tensors:
            tensors["prompts"].copy_(about["prompts"])
            into = {name: tensors[name] for name in FIELDS}
            first = starts(counts)
            for number in range(len(job.batches)):
                place(self.read(number, spec_hash), first, into)
        self._write_manifest(job, complete=True, rows=total, sha256=sha256_of(self.final))
        shutil.rmtree(self.path / "shards", ignore_errors=True)

    def open(self, *, verify: bool = False) -> Activations:
        """The finished capture, memory-mapped.

        Raises:
            OutputError: no capture here, not finished, or (with `verify`) damaged.
        """
        found = read_json(self.manifest, MANIFEST)
        if not found["complete"]:
            done = len(list((self.path / "shards").glob("*.safetensors")))
            raise OutputError(
                f"the capture in {self.path} is not finished: {done} of {found['batches']} "
                "batches are there; run the same capture again to resume it"
            )
        if verify and sha256_of(self.final) != found["sha256"]:
            raise OutputError(
                f"{self.final} is damaged (its checksum differs from the manifest's); "
                "capture again with resume=False"
            )
        return Activations.load(self.final)

    def _write_manifest(self, job: Job, *, complete: bool, **more: Any) -> None:
        manifest = {
            "kind": MANIFEST,
            "format_version": FORMAT_VERSION,
            "spec": job.spec,
            "spec_sha256": spec_sha256(job),
            "model": job.model.info.name,
            "batches": len(job.batches),
            "prompts_of_batch": [batch.rows.tolist() for batch in job.batches],
            "complete": complete,
            **more,
        }
        write_text(self.manifest, json.dumps(manifest) + "\n")

    def _require_same(self, found: Mapping[str, Any], job: Job) -> None:
        spec = job.spec
        if found["spec"] == spec:
            return
        wrong = [
            f"{key} ({_shown(found['spec'].get(key))} there, {_shown(value)} asked)"
            for key, value in spec.items()
            if found["spec"].get(key) != value
        ]
        raise OutputError(
            f"{self.path} holds another capture (of {found['model']}): it differs in "
            f"{', '.join(wrong)}; choose another folder, or pass resume=False to replace it"
        )

    def _clear(self) -> None:
        """Remove an earlier capture; anything that is not one is left, and refused later."""
        if self.manifest.exists():
            read_json(self.manifest, MANIFEST)
            shutil.rmtree(self.path / "shards", ignore_errors=True)
            self.final.unlink(missing_ok=True)
            self.manifest.unlink()


def capture_to(folder: Folder, job: Job, *, resume: bool, tick: Any) -> Activations:
    """Capture a job into a folder, going on where an earlier attempt stopped."""
    began = perf_counter()
    if folder.begin(job, resume=resume):
        tick(len(job.prompts))
        return folder.open()
    spec_hash = spec_sha256(job)
    rows = folder.done(job)
    resumed = len(rows)
    tick(sum(len(job.batches[number]) for number in rows))
    for number, piece in job.pieces(skip=frozenset(rows)):
        folder.write(number, piece, spec_hash)
        rows[number] = row_counts(piece, job.batches[number])
        tick(len(job.batches[number]))
    folder.finish(job, rows, began, resumed)
    return folder.open()


def row_counts(piece: Piece, batch: Batch) -> Int[Tensor, "batch"]:
    """How many rows each prompt of a batch has in its piece."""
    return (piece.prompt_index[None, :] == batch.rows.cpu()[:, None]).sum(1)


def digest(piece: Piece) -> str:
    """sha256 of a piece's bytes."""
    total = hashlib.sha256()
    for name in FIELDS:
        total.update(getattr(piece, name).contiguous().numpy().data)
    return total.hexdigest()


def spec_sha256(job: Job) -> str:
    """Hash of everything the result depends on."""
    return hashlib.sha256(json.dumps(job.spec, sort_keys=True).encode()).hexdigest()


def _shown(value: Any) -> str:
    text = str(value)
    return text[:8] if len(text) == 64 else text

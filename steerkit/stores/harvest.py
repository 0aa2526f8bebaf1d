"""A worker: loads the model once, then turns ranges of prompts into published shards."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steerkit import mapped
from steerkit.captures.assembly import in_memory
from steerkit.captures.job import Job
from steerkit.errors import ModelError, OutputError
from steerkit.files import FORMAT_VERSION, read_header, sha256_of, write_text, written_whole
from steerkit.protocols import Model
from steerkit.site import Site
from steerkit.stores.encoding import encode
from steerkit.stores.executor import Record, Task
from steerkit.stores.manifest import SHARD
from steerkit.stores.prompt_files import read_lines
from steerkit.stores.records import NOTE
from steerkit.stores.spec import Spec
from steerkit.stores.texts import prompt_from_json

if TYPE_CHECKING:
    from steerkit.models.outline import Outline


@dataclass(frozen=True)
class ModelSource:
    """Where a process finds the model: a name or path, and options of `steerkit.load`."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Model:
        """The model itself."""
        from steerkit.models import load

        return load(self.name, **self.options)

    def outline(self) -> "Outline":
        """The model without its weights, for a process that does not run it."""
        from steerkit.models.outline import outline

        return outline(self.name, **self.options)


@dataclass(frozen=True)
class Harvest:
    """Builds the worker of a process; picklable where `model` is a source.

    Attributes:
        folder: the store's.
        specs: what to capture, by the hash that tasks name.
        model: the model, or where a process finds it.
    """

    folder: str
    specs: Mapping[str, Spec]
    model: Model | ModelSource

    def __call__(self) -> "Harvester":
        """Load the model, unless it is there, and check that it is the right one.

        Raises:
            ModelError: this process finds another model under that name than the driver did.
        """
        model = self.model.load() if isinstance(self.model, ModelSource) else self.model
        for spec in self.specs.values():
            wrong = [
                f"{what} ({found[:12]} here, {wanted[:12]} in the store)"
                for what, found, wanted in (
                    ("weights", model.info.fingerprint, spec.model),
                    ("dtype", model.info.dtype, spec.model_dtype),
                    ("processing", model.info.processing, spec.processing),
                )
                if found != wanted
            ]
            if wrong:
                raise ModelError(
                    f"a worker loaded another '{model.info.name}' than the store is of: it differs "
                    f"in {', '.join(wrong)}; give every machine the same model and options"
                )
        return Harvester(Path(self.folder), self.specs, model)


@dataclass(frozen=True)
class Harvester:
    """Publishes the shard of one task after another."""

    folder: Path
    specs: Mapping[str, Spec]
    model: Model

    def __call__(self, task: Task) -> Record:
        """Capture, store and publish one range of rows, unless an earlier attempt has.

        Raises:
            ActivationError: NaN or infinite values; names site and prompt.
            OutputError: the shard cannot be written.
        """
        began = perf_counter()
        spec = self.specs[task.group]
        found = self._published(task)
        if found is not None:
            return found
        job = self.job(spec, lines_of(self.folder, task))
        tensors, errors = shard_tensors(job, spec, task.start)
        about = {"spec_sha256": task.group, "start": task.start, "stop": task.stop}
        facts = {
            "number": task.number,
            "start": task.start,
            "stop": task.stop,
            "name": task.name,
            "rows": len(tensors["prompt"]),
            "tokens": job.receipt["tokens"],
            "errors": errors,
        }
        return publish(self.folder / task.name, tensors, about, facts, began)

    def job(self, spec: Spec, lines: Sequence[Mapping[str, Any]]) -> Job:
        """The capture of the prompts in some lines of a prompt file."""
        return Job.plan(
            self.model,
            [prompt_from_json(line["prompt"]) for line in lines],
            sites=tuple(Site.parse(site) for site in spec.sites),
            pooling=spec.rule,
            before=spec.before,
            token_budget=spec.token_budget,
        )

    def _published(self, task: Task) -> Record | None:
        """The record of a shard that an earlier attempt published, if it is sound."""
        path = self.folder / task.name
        note = path.with_name(path.name + NOTE)
        if not (path.is_file() and note.is_file()):
            return None
        try:
            header = read_header(path, SHARD)
            record = Record(**{**json.loads(note.read_text(encoding="utf-8")), "resumed": True})
            sound = header["spec_sha256"] == task.group and sha256_of(path) == record.sha256
        except (OutputError, OSError, ValueError, TypeError):
            return None  # it is made again, and replaced
        return record if sound and record.name == task.name else None


def lines_of(folder: Path, task: Task) -> list[dict[str, Any]]:
    """The lines of a task's prompt file: prompts with their metadata.

    Raises:
        PromptError: the file is missing, damaged or of other rows.
    """
    path = folder / "prompts" / f"{task.start:010d}.jsonl"
    return read_lines(path, task.start, task.stop, task.prompts_sha256)


def shard_tensors(
    job: Job, spec: Spec, start: int
) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
    """The tensors of a shard whose first prompt is row `start`, and the errors of its values."""
    rows = in_memory(job, (piece for _, piece in job.pieces()))
    values = rows.pop("values")
    tensors = {
        "prompt": rows["prompt_index"] + start,
        "position": rows["positions"].int(),
        "token": rows["tokens"].int(),
        **_token_ids(job),
    }
    errors = {}
    for i, site in enumerate(spec.sites):
        stored, scale, errors[site] = encode(values[:, i], spec.dtype)
        tensors[f"values.{site}"] = stored
        if scale is not None:
            tensors[f"scale.{site}"] = scale
    return tensors, errors


def publish(
    path: Path,
    tensors: Mapping[str, Tensor],
    about: Mapping[str, Any],
    facts: Mapping[str, Any],
    began: float,
) -> Record:
    """Write a shard under a temporary name, its note beside it, then give it its own name.

    What is in the file depends on the task alone; times and machines stand in the record.
    """
    meta = {"kind": SHARD, "format_version": FORMAT_VERSION, **about}
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with written_whole(path) as temporary:
        into = mapped.create(temporary, layout, {"steerkit": json.dumps(meta, sort_keys=True)})
        for name, tensor in tensors.items():
            into[name].copy_(tensor)
        del into
        record = Record(
            **facts,
            bytes=temporary.stat().st_size,
            sha256=sha256_of(temporary),
            seconds=round(perf_counter() - began, 4),
        )
        write_text(path.with_name(path.name + NOTE), json.dumps(record.to_json()))
    return record


def _token_ids(job: Job) -> dict[str, Tensor]:
    """Token ids of every prompt and answer, one after another, in the prompts' order."""
    n = len(job.prompts)
    found: list[Tensor] = [torch.empty(0)] * n
    lengths = torch.zeros(n, dtype=torch.int32)
    for batch in job.batches:
        tokens, mask, rows = batch.tokens.cpu(), batch.mask.cpu(), batch.rows.cpu()
        lengths[rows] = batch.prompt_len.cpu().int()
        for i, row in enumerate(rows.tolist()):
            found[row] = tokens[i, mask[i]]
    counts = torch.tensor([0, *(len(ids) for ids in found)])
    return {
        "ids": torch.cat(found).int(),
        "ids_start": counts.cumsum(0),
        "prompt_len": lengths,
    }

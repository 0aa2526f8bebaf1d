"""A worker that sums instead of storing: a range of prompts becomes moments by class and group."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from steerkit.captures.job import Job
from steerkit.errors import OutputError, PromptError
from steerkit.extraction.group_moments import GroupMoments, read
from steerkit.files import sha256_of
from steerkit.stores.executor import Record, Task
from steerkit.stores.harvest import Harvest, Harvester, lines_of
from steerkit.stores.spec import Spec

HELD = 128 * 2**20
"""Bytes of rows that are summed at a time: an update costs d_model^2 whatever it holds."""


@dataclass(frozen=True)
class By:
    """The columns by which rows are summed apart.

    Attributes:
        classes: of the class, such as `label`.
        groups: of the group, such as `category`; empty for one group.
    """

    classes: str
    groups: str = ""

    def __str__(self) -> str:
        return f"moments by '{self.classes}'" + (f" and '{self.groups}'" if self.groups else "")

    def cells(self, lines: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
        """The class and the group of every line of a prompt file, as text.

        Raises:
            PromptError: a line without them; names the row of the dataset.
        """
        return self._column(lines, self.classes), (
            self._column(lines, self.groups) if self.groups else [""] * len(lines)
        )

    def _column(self, lines: Sequence[Mapping[str, Any]], name: str) -> list[str]:
        found = []
        for line in lines:
            value = line["metadata"].get(name)
            if value is None:
                there = ", ".join(k for k, v in line["metadata"].items() if v is not None)
                raise PromptError(
                    f"row {line['dataset_row']} of the dataset has no '{name}' to be summed by; "
                    f"it has {there or 'no scalar column'}: name another, or leave the row out"
                )
            found.append(str(value))
        return found


@dataclass(frozen=True)
class Summing:
    """Builds the worker of a process, as `Harvest` does.

    Attributes:
        harvest: the folder, the spec and the model.
        by: the columns.
    """

    harvest: Harvest
    by: By

    def __call__(self) -> "Summer":
        """Load the model, unless it is there.

        Raises:
            ModelError: this process finds another model under that name than the driver did.
        """
        return Summer(self.harvest(), self.by)


@dataclass(frozen=True)
class Summer:
    """Publishes the moments of one task after another."""

    harvester: Harvester
    by: By

    def __call__(self, task: Task) -> Record:
        """Run one range of rows, sum, and publish, unless an earlier attempt has.

        Raises:
            PromptError: a row without its class or group.
            ActivationError: NaN or infinite values.
            OutputError: the file cannot be written.
        """
        began = perf_counter()
        path = self.harvester.folder / task.name
        about = _published(path, task)
        resumed = about is not None
        if about is None:
            spec = self.harvester.specs[task.group]
            lines = lines_of(self.harvester.folder, task)
            job = self.harvester.job(spec, lines)
            moments = summed(job, spec, *self.by.cells(lines))
            about = {
                "spec_sha256": task.group,
                "start": task.start,
                "stop": task.stop,
                "rows": sum(moments.counts.values()),
                "tokens": job.receipt["tokens"],
            }
            moments.save(path, about)
        return Record(
            number=task.number,
            start=task.start,
            stop=task.stop,
            name=task.name,
            rows=about["rows"],
            tokens=about["tokens"],
            bytes=path.stat().st_size,
            sha256=sha256_of(path),
            seconds=round(perf_counter() - began, 4),
            resumed=resumed,
        )


def summed(job: Job, spec: Spec, labels: Sequence[str], groups: Sequence[str]) -> GroupMoments:
    """The moments of a job's rows; the same bits whichever worker sums them."""
    moments = GroupMoments(job.sites, job.model.info, job.pooling.name, datasets=(spec.dataset,))
    for values, prompts in _chunks(job):
        moments.update(values, [labels[i] for i in prompts], [groups[i] for i in prompts])
    return moments


def _chunks(job: Job) -> Iterator[tuple[Tensor, list[int]]]:
    """Rows of several batches together, with their prompts."""
    values: list[Tensor] = []
    prompts: list[int] = []
    held = 0
    for _, piece in job.pieces():
        values.append(piece.values)
        prompts += piece.prompt_index.tolist()
        held += piece.values.nbytes
        if held >= HELD:
            yield torch.cat(values), prompts
            values, prompts, held = [], [], 0
    if prompts:
        yield torch.cat(values), prompts


def _published(path: Path, task: Task) -> dict[str, Any] | None:
    """What an earlier attempt noted in the file that it published, if it is of this task."""
    if not path.is_file():
        return None
    try:
        _, about = read(path)
    except (OutputError, json.JSONDecodeError, KeyError):
        return None  # it is made again, and replaced
    same = (about.get("spec_sha256"), about.get("start"), about.get("stop"))
    return about if same == (task.group, task.start, task.stop) else None

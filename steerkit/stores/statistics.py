"""`dataset_moments`: statistics of a whole dataset's activations, without an activation on disk."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steerkit.captures.job import choose_sites
from steerkit.captures.pooling import Pooling, Span
from steerkit.captures.verbs import Sites
from steerkit.errors import MethodError, OutputError
from steerkit.extraction.group_moments import GroupMoments, read
from steerkit.prompts import Template
from steerkit.protocols import Model
from steerkit.site import Site
from steerkit.stores import executors
from steerkit.stores.executor import Executor, Record
from steerkit.stores.harvest import Harvest
from steerkit.stores.lock import driver_lock
from steerkit.stores.manifest import Folder, Manifest
from steerkit.stores.opening import Given, model_for, opened
from steerkit.stores.running import finish
from steerkit.stores.spec import Spec
from steerkit.stores.summing import By, Summing
from steerkit.stores.texts import BadRows, OnBadRow

TOTAL = "moments.safetensors"
ROWS = 2048
"""Prompts a task: each leaves a file of 16 d_model^2 bytes a site until it is joined."""
WAITING = 2**30
"""Bytes of such files that may wait before they are joined."""


def dataset_moments(
    model: Model | str | Path,
    dataset: Any = None,
    *,
    out: str | Path,
    classes: str,
    groups: str = "",
    streams: str | Iterable[str] = "resid_post",
    layers: int | Iterable[int] | None = None,
    sites: Sites | None = None,
    positions: str | int | Span = "last",
    exclude_bos: bool = False,
    exclude_sinks: bool | float = False,
    before: bool = False,
    split: str = "train",
    config: str | None = None,
    text_column: str = "",
    template: Template = "auto",
    limit: int | None = None,
    max_tokens: int | None = None,
    on_bad_row: OnBadRow = "error",
    rows_per_task: int | None = None,
    token_budget: int = 4096,
    workers: int = 1,
    address: str | None = None,
    gpus: float | None = None,
    executor: Executor | None = None,
    model_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> GroupMoments:
    """Counts, means and covariances of a dataset's activations by class and group, in float64.

    What mean differences, LDA, whitening, LEACE and ridge CAVs need of a billion tokens:

        moments = sk.dataset_moments("NAME", "data.jsonl", out="sums", classes="label")
        directions = sk.extract_from_moments(moments.between("1", "0"), "lda")

    They equal those of stored rows to rounding. Ranges of rows are summed apart, by any worker,
    and joined in the dataset's order: the result is the same bits however many workers there
    are. Killed anywhere, the same call goes on; another dataset, model or spec is refused.
    Memory: a batch, 128 MiB of rows and 16 d_model^2 bytes for each site, class and group.

    Args:
        model: a model, or where more than one process is to run it, its name or path, such as
            `vllm:NAME`.
        dataset: as in `capture_dataset`; None: the prompts that `out` already holds.
        out: a folder; workers must see it under the same path.
        classes: the column whose values are the classes, such as `label`.
        groups: the column of groups that may later be left out, such as a category.
        streams: one or several of resid_pre, attn_out, resid_mid, mlp_out, resid_post.
        layers: counted from 0; all by default.
        sites: exactly these sites, instead of streams x layers.
        positions: what becomes a row; `all` gives one row a token.
        exclude_bos: leave a special token that stands first out of means and `all`.
        exclude_sinks: leave attention sinks out, as in `capture`.
        before: read the incoming stream, before interventions at each site.
        split: of a dataset of the hub or a saved one.
        config: of a dataset of the hub.
        text_column: the column that holds the text; by default the first of the usual names.
        template: how prompts are rendered: auto, chat, raw.
        limit: how many usable rows; all by default.
        max_tokens: the longest prompt with its answer; the model's context by default.
        on_bad_row: error, skip or truncate, as in `capture_dataset`.
        rows_per_task: prompts summed at a time by one worker.
        token_budget: padded tokens a batch may hold.
        workers: how many processes.
        address: of a Ray cluster ("auto", "HOST:PORT"), or "local" to start one here.
        gpus: GPUs of each worker on Ray; by default one where the cluster has any.
        executor: runs the tasks, instead of what `workers` and `address` choose.
        model_options: options of `load`, where the model is given by name.
        progress: show a bar on stderr.

    Raises:
        PromptError: no such dataset, a bad row, a row without its class or group.
        SiteError: a layer or stream the model lacks.
        ActivationError: NaN or infinite values.
        OutputError: `out` cannot be written, holds something else, or has another driver.
        WorkerError: worker processes died too often or never came.
    """
    if rows_per_task is not None and rows_per_task < 1:
        raise MethodError(f"rows_per_task is at least 1; got {rows_per_task}")
    by = By(classes, groups)
    given = Given(
        dataset, split, config, text_column, template, limit, max_tokens, BadRows(on_bad_row)
    )
    chosen = executor or executors.choose(workers, address, gpus=gpus)
    folder = Folder(Path(out))
    with model_for(model, chosen, model_options or {}) as (loaded, source):
        spec = Spec.of(
            loaded,
            "",
            choose_sites(loaded, streams, layers, sites),
            Pooling.of(positions, exclude_bos=exclude_bos, exclude_sinks=exclude_sinks),
            before=before,
            token_budget=token_budget,
            rows_per_shard=rows_per_task or ROWS,
            dtype=str(by),
        )
        with driver_lock(folder.path):
            if folder.manifest.exists():
                _check_sites(folder, spec)
            manifest = opened(folder, given, spec, loaded)
            (group,) = manifest.groups
            total = Total.open(folder, manifest, group)
            tasks = [task for task in manifest.tasks() if task.number >= total.joined]
            waiting = folder.finished()
            for task in tasks:
                if task.name in waiting:
                    total.add(waiting[task.name])
            tasks = [task for task in tasks if task.name not in waiting]
            harvest = Harvest(str(folder.path.resolve()), {group.sha256: group}, source)
            summing = Summing(harvest, by)
            finish(chosen, folder, tasks, summing, progress=progress, what="sum", then=total.add)
            total.join()
            return total.moments


@dataclass
class Total:
    """The moments of all rows up to some task, in one file; later parts wait for their turn.

    The file says how many parts are in it, and is replaced whole: a part is never lost and
    never counted twice, wherever this process ends.

    Attributes:
        folder: the store's.
        spec: hash of what is summed.
        moments: of the first `joined` parts.
        joined: how many.
    """

    folder: Folder
    spec: str
    moments: GroupMoments
    joined: int = 0
    _waiting: dict[int, Record] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Folder, manifest: Manifest, spec: Spec) -> "Total":
        """What is there, or nothing yet; parts that are in it are removed.

        Raises:
            OutputError: a damaged file.
        """
        sites = tuple(Site.parse(site) for site in spec.sites)
        empty = GroupMoments(
            sites, manifest.info, spec.rule.name, datasets=(str(manifest.dataset["fingerprint"]),)
        )
        found = cls(folder, spec.sha256, empty)
        path = folder.path / TOTAL
        if path.is_file():
            try:
                found.moments, about = read(path)
            except OutputError as error:
                raise OutputError(
                    f"{error}: the parts that were joined in it are gone, so delete "
                    f"{folder.path} and sum again"
                ) from error
            found.joined = int(about["joined"])
            for task in manifest.tasks()[: found.joined]:
                (folder.path / task.name).unlink(missing_ok=True)
        return found

    def add(self, record: Record) -> None:
        """A part that is there; parts are joined once many bytes wait."""
        self._waiting[record.number] = record
        if sum(r.bytes for r in self._waiting.values()) > WAITING:
            self.join()

    def join(self) -> None:
        """Join the parts whose turn it is, publish the total, then remove them."""
        done = []
        while self.joined in self._waiting:
            path = self.folder.path / self._waiting.pop(self.joined).name
            self.moments = self.moments.merge(GroupMoments.load(path))
            self.joined += 1
            done.append(path)
        if done:
            about = {"spec_sha256": self.spec, "joined": self.joined}
            self.moments.save(self.folder.path / TOTAL, about)
            for path in done:
                path.unlink(missing_ok=True)


def _check_sites(folder: Folder, spec: Spec) -> None:
    """Refuse other sites than those that were summed: rows cannot be added to sums that are there.

    Raises:
        OutputError: other sites.
    """
    there = {site for group in folder.read().groups for site in group.sites}
    if there != set(spec.sites):
        raise OutputError(
            f"{folder.path} holds sums of {', '.join(sorted(there))}; sum "
            f"{', '.join(spec.sites)} into another folder"
        )

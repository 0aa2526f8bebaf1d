"""`capture_dataset`: a dataset in, a store out."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from steerkit.captures.job import choose_sites
from steerkit.captures.pooling import Pooling, Span
from steerkit.captures.verbs import Sites
from steerkit.errors import MethodError, ModelError, OutputError, PromptError
from steerkit.prompts import Template
from steerkit.protocols import Model
from steerkit.stores import executors
from steerkit.stores.encoding import DTYPES, check_dtype
from steerkit.stores.executor import Executor, Task
from steerkit.stores.harvest import Harvest, ModelSource
from steerkit.stores.lock import driver_lock
from steerkit.stores.manifest import Folder, Manifest
from steerkit.stores.progress import Bar, Progress
from steerkit.stores.sources import name_of, rows_of
from steerkit.stores.spec import Spec
from steerkit.stores.staging import check, stage
from steerkit.stores.store import ActivationStore
from steerkit.stores.texts import BadRows, Columns, OnBadRow, Row, fits, read_rows

SHARD_BYTES = 64 * 2**20
"""What a shard is to hold at most, as far as that is known before tokens are counted."""
GUESSED_TOKENS = 256
"""Tokens a prompt, where every token becomes a row; only the size of shards follows from it."""


def capture_dataset(
    model: Model | str | Path,
    dataset: Any = None,
    *,
    out: str | Path,
    streams: str | Iterable[str] = "resid_post",
    layers: int | Iterable[int] | None = None,
    sites: Sites | None = None,
    positions: str | int | Span = "last",
    exclude_bos: bool = False,
    exclude_sinks: bool | float = False,
    dtype: str = "float32",
    before: bool = False,
    split: str = "train",
    config: str | None = None,
    text_column: str = "",
    template: Template = "auto",
    limit: int | None = None,
    max_tokens: int | None = None,
    on_bad_row: OnBadRow = "error",
    rows_per_shard: int | None = None,
    token_budget: int = 4096,
    workers: int = 1,
    address: str | None = None,
    executor: Executor | None = None,
    model_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> ActivationStore:
    """Record what a model's streams hold on a whole dataset, in a folder; killed anywhere, resumed.

    The dataset is cut into ranges of rows. Each becomes one file that appears whole or not at
    all, so the same call after a crash goes on with what is missing; finished files are never
    computed again. Another dataset, model or spec than the folder's is refused. Files are the
    same bits whichever worker makes them, with as many threads a worker.

    Called again with more sites on the same folder, it adds them for the same rows.
    Memory: one shard and one batch a worker; here, the sizes of all shards.

    Args:
        model: a model, or where more than one process is to run it, its name or path.
        dataset: a .jsonl, .parquet, .csv or .txt file or a folder of them, the name of a dataset
            of the Hugging Face hub, a contrast, or any iterable of strings, mappings or prompts,
            such as a `datasets.Dataset`. None: the prompts that `out` already holds.
        out: the store's folder; workers must see it under the same path.
        streams: one or several of resid_pre, attn_out, resid_mid, mlp_out, resid_post.
        layers: counted from 0; all by default.
        sites: exactly these sites, instead of streams x layers.
        positions: what becomes a row, as in `capture`; `all` gives one row a token.
        exclude_bos: leave a special token that stands first out of means and `all`.
        exclude_sinks: leave attention sinks out, as in `capture`.
        dtype: how values are stored: float32, bfloat16, float16 or int8 (a scale a row). What
            that loses is measured for each shard and site and stands in its record.
        before: read the incoming stream, before interventions at each site.
        split: of a dataset of the hub or a saved one.
        config: of a dataset of the hub.
        text_column: the column that holds the text; by default the first of the usual names.
        template: how prompts are rendered: auto (chat where there is a template), chat, raw.
        limit: how many usable rows; all by default. Exactly so many are stored if there are.
        max_tokens: the longest prompt with its answer; the model's context by default.
        on_bad_row: of a row that is empty, too long or not text: `error` names it, `skip` leaves
            it out, `truncate` keeps the beginning of a text that is too long. The manifest says
            which rows, and why.
        rows_per_shard: prompts a shard; by default up to 512, as make 64 MiB.
        token_budget: padded tokens a batch may hold.
        workers: how many processes.
        address: of a Ray cluster ("auto", "HOST:PORT"), or "local" to start one here.
        executor: runs the tasks, instead of what `workers` and `address` choose.
        model_options: options of `load`, where the model is given by name.
        progress: show a bar on stderr.

    Raises:
        PromptError: no such dataset, a bad row (under the policy `error`), no usable row.
        SiteError: a layer or stream the model lacks.
        ActivationError: NaN or infinite values, or values that the dtype cannot hold.
        OutputError: `out` cannot be written, holds something else, or has another driver.
        WorkerError: worker processes died too often or never came.
    """
    check_dtype(dtype)
    given = Given(
        dataset, split, config, text_column, template, limit, max_tokens, BadRows(on_bad_row)
    )
    if rows_per_shard is not None and rows_per_shard < 1:
        raise MethodError(f"rows_per_shard is at least 1; got {rows_per_shard}")
    chosen = executor or executors.choose(workers, address)
    loaded, source = _model(model, chosen, model_options or {})
    spec = Spec.of(
        loaded,
        "",
        choose_sites(loaded, streams, layers, sites),
        Pooling.of(positions, exclude_bos=exclude_bos, exclude_sinks=exclude_sinks),
        before=before,
        token_budget=token_budget,
        rows_per_shard=rows_per_shard or 0,
        dtype=dtype,
    )
    folder = Folder(Path(out))
    with driver_lock(folder.path):
        folder.begin()
        folder.sweep()
        if folder.manifest.exists():
            manifest = _go_on(folder, given, spec, loaded)
        else:
            manifest = _begin(folder, given, spec, loaded)
        groups = [group for group in manifest.groups if set(group.sites) & set(spec.sites)]
        finished = folder.finished()
        tasks = [task for task in manifest.tasks(groups) if task.name not in finished]
        specs = {group.sha256: group for group in groups}
        _run(chosen, folder, tasks, Harvest(str(folder.path.resolve()), specs, source), progress)
    return ActivationStore(folder.path)


@dataclass(frozen=True)
class Given:
    """The dataset that a call names, and how its rows are read."""

    dataset: Any
    split: str
    config: str | None
    text_column: str
    template: Template
    limit: int | None
    max_tokens: int | None
    bad: BadRows

    def __post_init__(self) -> None:
        for name in ("limit", "max_tokens"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise MethodError(f"{name} is at least 1; got {number}")

    def rows(self, model: Model, columns: Columns) -> Iterator[Row]:
        """Its usable rows."""
        return read_rows(
            rows_of(self.dataset, split=self.split, config=self.config),
            problem=fits(model, self.max_tokens),
            bad=self.bad,
            columns=columns,
            template=self.template,
            limit=self.limit,
        )


def _begin(folder: Folder, given: Given, spec: Spec, model: Model) -> Manifest:
    """The manifest of a new store, whose prompts are put into its folder."""
    if given.dataset is None:
        raise PromptError(f"{folder.path} holds no prompts yet; give a dataset")
    columns = Columns(given.text_column)
    size = spec.rows_per_shard or _rows_per_shard(spec, model.info.d_model)
    parts, fingerprint = stage(folder, given.rows(model, columns), size)
    about = {
        "name": name_of(given.dataset),
        "fingerprint": fingerprint,
        "rows": parts[-1].stop,
        "rows_per_shard": size,
        "text_column": columns.text,
        "columns": list(columns.kept),
        "dropped_columns": list(columns.dropped),
        "template": given.template,
        "limit": given.limit,
        "max_tokens": given.max_tokens,
        "bad_rows": given.bad.to_json(),
    }
    from steerkit import __version__

    versions = {"steerkit": __version__, "torch": str(torch.__version__)}
    first = replace(spec, dataset=fingerprint, rows_per_shard=size)
    manifest = Manifest(about, model.info, (first,), parts, versions)
    folder.write(manifest)
    return manifest


def _go_on(folder: Folder, given: Given, spec: Spec, model: Model) -> Manifest:
    """The manifest of a store that is there, with the sites added that are asked for.

    Raises:
        OutputError: it is of another spec, model or dataset.
    """
    old = folder.read()
    size = int(old.dataset["rows_per_shard"])
    spec = replace(
        spec,
        dataset=old.dataset["fingerprint"],
        rows_per_shard=spec.rows_per_shard or size,
    )
    groups = _groups(folder, old, spec)
    if given.dataset is not None:
        check(folder, given.rows(model, Columns(given.text_column)), size, old.parts)
    elif given.limit is not None:
        raise MethodError(
            f"limit={given.limit} goes with a dataset; without one, the store's own "
            f"{old.parts[-1].stop} prompts are captured"
        )
    manifest = replace(old, groups=groups)
    if groups != old.groups:
        folder.write(manifest)
    return manifest


def _run(
    executor: Executor, folder: Folder, tasks: list[Task], make_worker: Harvest, progress: bool
) -> None:
    if not tasks:
        return
    shown = Progress(tasks, workers=executor.workers)
    with folder.log.appending() as log, Bar(shown, shown=progress) as bar:
        for record in executor.run(tasks, make_worker):
            log.add(record)
            bar.add(record)


def _model(
    model: Model | str | Path, executor: Executor, options: Mapping[str, Any]
) -> tuple[Model, Model | ModelSource]:
    """The model for this process, and what workers are given."""
    here = isinstance(executor, executors.InProcess)
    if isinstance(model, str | Path):
        source = ModelSource(str(model), dict(options))
        loaded = source.load()
        return loaded, loaded if here else source
    if options:
        raise ModelError("model_options are for a model that is given by name; this one is loaded")
    if not here:
        raise ModelError(
            f"{executor.workers} workers in other processes load the model themselves: give its "
            f"name or path instead of the loaded '{model.info.name}', or workers=1"
        )
    return model, model


def _groups(folder: Folder, old: Manifest, spec: Spec) -> tuple[Spec, ...]:
    """The groups of a store once the sites of a spec are in it.

    Raises:
        OutputError: the store holds another spec.
    """
    there = old.groups[0].common
    wrong = [
        f"{key} ({_short(there[key])} there, {_short(value)} asked)"
        for key, value in spec.common.items()
        if there[key] != value
    ]
    held = {site: group.dtype for group in old.groups for site in group.sites}
    wrong += [
        f"dtype of {site} ({held[site]} there, {spec.dtype} asked)"
        for site in spec.sites
        if held.get(site, spec.dtype) != spec.dtype
    ]
    if wrong:
        raise OutputError(
            f"{folder.path} holds another capture (of {old.info.name}): it differs in "
            f"{', '.join(wrong)}; choose another folder"
        )
    new = tuple(site for site in spec.sites if site not in held)
    if new and spec.rule.rule == "all" and spec.rule.sink_ratio is not None:
        raise OutputError(
            f"{folder.path} leaves out the tokens that are sinks at its sites, and more sites "
            "would leave out others; capture all sites at once into another folder"
        )
    return (*old.groups, replace(spec, sites=new)) if new else old.groups


def _rows_per_shard(spec: Spec, d_model: int) -> int:
    """Prompts a shard, a power of two."""
    row = len(spec.sites) * d_model * DTYPES[spec.dtype].itemsize
    per_prompt = row * (GUESSED_TOKENS if spec.rule.rule == "all" else 1)
    return 1 << min(9, max(4, (SHARD_BYTES // per_prompt).bit_length() - 1))


def _short(value: Any) -> str:
    text = str(value)
    return text[:8] if len(text) == 64 else text

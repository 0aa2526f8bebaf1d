"""`capture_dataset`: a dataset in, a store out."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from steerkit.captures.job import choose_sites
from steerkit.captures.pooling import Pooling, Span
from steerkit.captures.verbs import Sites
from steerkit.errors import MethodError
from steerkit.prompts import Template
from steerkit.protocols import Model
from steerkit.stores import executors
from steerkit.stores.encoding import check_dtype
from steerkit.stores.executor import Executor
from steerkit.stores.harvest import Harvest
from steerkit.stores.lock import driver_lock
from steerkit.stores.manifest import Folder
from steerkit.stores.opening import Given, model_for, opened
from steerkit.stores.running import finish
from steerkit.stores.spec import Spec
from steerkit.stores.store import ActivationStore
from steerkit.stores.texts import BadRows, OnBadRow


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
    gpus: float | None = None,
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
        model: a model, or where more than one process is to run it, its name or path, such as
            `vllm:NAME`.
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
        text_column: the column that holds the text, or a conversation as turns with `role` and
            `content`; by default the first of the usual names.
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
        gpus: GPUs of each worker on Ray; by default one where the cluster has any.
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
            rows_per_shard=rows_per_shard or 0,
            dtype=dtype,
        )
        with driver_lock(folder.path):
            manifest = opened(folder, given, spec, loaded)
            groups = [group for group in manifest.groups if set(group.sites) & set(spec.sites)]
            finished = folder.finished()
            tasks = [task for task in manifest.tasks(groups) if task.name not in finished]
            specs = {group.sha256: group for group in groups}
            harvest = Harvest(str(folder.path.resolve()), specs, source)
            finish(chosen, folder, tasks, harvest, progress=progress)
    return ActivationStore(folder.path)

"""What a dataset's folder is to hold: made when it is new, compared with when it is there."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from steerkit.errors import MethodError, ModelError, OutputError, PromptError
from steerkit.prompts import Template
from steerkit.protocols import Model
from steerkit.stores import executors
from steerkit.stores.encoding import DTYPES
from steerkit.stores.executor import Executor
from steerkit.stores.harvest import ModelSource
from steerkit.stores.lengths import fits
from steerkit.stores.manifest import Folder, Manifest
from steerkit.stores.parsing import Columns
from steerkit.stores.sources import name_of, rows_of
from steerkit.stores.spec import Spec
from steerkit.stores.staging import check, stage
from steerkit.stores.texts import BadRows, Row, read_rows

SHARD_BYTES = 64 * 2**20
"""What a shard is to hold at most, as far as that is known before tokens are counted."""
GUESSED_TOKENS = 256
"""Tokens a prompt, where every token becomes a row; only the size of shards follows from it."""


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


def opened(folder: Folder, given: Given, spec: Spec, model: Model) -> Manifest:
    """The manifest of a folder, made where it is new; what killed attempts left is swept away.

    Raises:
        OutputError: it holds something else, or another spec, model or dataset.
    """
    folder.begin()
    folder.sweep()
    make = go_on if folder.manifest.exists() else begin
    return make(folder, given, spec, model)


def begin(folder: Folder, given: Given, spec: Spec, model: Model) -> Manifest:
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


def go_on(folder: Folder, given: Given, spec: Spec, model: Model) -> Manifest:
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


@contextmanager
def model_for(
    model: Model | str | Path, executor: Executor, options: Mapping[str, Any]
) -> Iterator[tuple[Model, Model | ModelSource]]:
    """The model for this process, and what workers are given.

    Where others run it, this process has its outline: it answers for `info`, `table` and
    `tokenize` alone, and holds no weights beside those of the workers. What was loaded here is
    closed afterwards, where it is of a kind that has to be.

    Raises:
        ModelError: no such model, or a loaded one where other processes are to run it.
    """
    here = isinstance(executor, executors.InProcess)
    if not isinstance(model, str | Path):
        if options:
            raise ModelError(
                "model_options are for a model that is given by name; this one is loaded"
            )
        if not here:
            raise ModelError(
                f"{executor.workers} workers in other processes load the model themselves: give "
                f"its name or path instead of the loaded '{model.info.name}', or workers=1"
            )
        yield model, model
        return
    folder = Path(model).expanduser()
    # A worker may have another working directory.
    name = str(folder.resolve()) if folder.is_dir() else str(model)
    source = ModelSource(name, dict(options))
    if not here:
        yield cast(Model, source.outline()), source
        return
    loaded = source.load()
    try:
        yield loaded, loaded
    finally:
        if hasattr(loaded, "close"):
            loaded.close()


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

"""A store's rows as other things: activations in memory, datasets for SAELens and Hugging Face."""

import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from steerkit.activations import Activations
from steerkit.errors import ActivationError, OutputError
from steerkit.prompts import groups_of
from steerkit.site import Site

if TYPE_CHECKING:
    from steerkit.stores.store import ActivationStore

ROWS = 4096
"""Rows that an export holds at a time."""


def to_activations(
    store: "ActivationStore", sites: Sequence[Site], rows: Int[Tensor, "row"], label: str
) -> Activations:
    """Some rows in memory, with the prompts that they belong to.

    Raises:
        ActivationError: labels that are not 0 and 1.
    """
    owner = store.prompt_index(rows)
    kept = owner.unique()
    wanted = set(kept.tolist())
    pairs = [pair for i, pair in enumerate(store.prompts()) if i in wanted]
    prompts = tuple(prompt for prompt, _ in pairs)
    own = [metadata.get("group") for _, metadata in pairs]
    spec = store.manifest.groups[0]
    return Activations(
        values=torch.stack([store.at(site, rows) for site in sites], 1),
        sites=tuple(sites),
        prompts=prompts,
        labels=_labels([metadata for _, metadata in pairs], label),
        groups=tuple(map(str, own)) if own and all(own) else groups_of(prompts),
        pooling=store.pooling,
        info=store.info,
        prompt_index=torch.searchsorted(kept, owner),
        positions=store.positions(rows),
        tokens=store.tokens(rows),
        steering=spec.interventions,
        provenance={
            "store": str(store.path),
            "dataset": store.manifest.dataset["fingerprint"],
            "exclude_bos": spec.pooling["exclude_bos"],
            "sink_ratio": spec.pooling["sink_ratio"],
            "before": spec.before,
            "token_budget": spec.token_budget,
            **store.manifest.versions,
        },
        checked=True,
    )


def export_saelens(
    store: "ActivationStore", out: Path, sites: Sequence[Site], context_size: int | None
) -> int:
    """Windows of neighbouring rows, as SAELens' caching runner writes them."""
    import datasets

    size = context_size or _common_length(store)
    windows = len(store) // size
    if not windows:
        raise OutputError(
            f"a window of {size} rows is longer than the store, which has {len(store)}; give a "
            "smaller context_size"
        )
    hooks = {f"blocks.{site.layer}.hook_{site.stream}": site for site in sites}
    width = store.info.d_model
    columns = {name: datasets.Array2D((size, width), "float32") for name in hooks}
    columns["token_ids"] = datasets.Sequence(datasets.Value("int32"), length=size)
    step = max(1, ROWS // size)

    def batches() -> Iterator[dict[str, Any]]:
        for start in range(0, windows, step):
            stop = min(start + step, windows)
            rows = slice(start * size, stop * size)
            batch = {
                name: list(store.at(site, rows).reshape(-1, size, width).numpy())
                for name, site in hooks.items()
            }
            batch["token_ids"] = list(store.tokens(rows).int().reshape(-1, size).numpy())
            yield batch

    _write(out, columns, batches)
    return windows * size


def export_dataset(store: "ActivationStore", out: Path, sites: Sequence[Site]) -> int:
    """One row for each of the store's, with its prompt's text and metadata."""
    import datasets

    prompts = list(store.prompts())
    own = {"prompt", "text", "position", "token", *map(str, sites)}
    names = {
        name: f"dataset_{name}" if name in own else name
        for name in store.manifest.dataset["columns"]
    }
    columns = {
        "prompt": datasets.Value("int64"),
        "text": datasets.Value("string"),
        "position": datasets.Value("int32"),
        "token": datasets.Value("int32"),
        **{
            named: datasets.Value(_kind([metadata.get(name) for _, metadata in prompts]))
            for name, named in names.items()
        },
        **{
            str(site): datasets.Sequence(datasets.Value("float32"), length=store.info.d_model)
            for site in sites
        },
    }

    def batches() -> Iterator[dict[str, Any]]:
        for start in range(0, len(store), ROWS):
            rows = slice(start, start + ROWS)
            owner = store.prompt_index(rows).tolist()
            kinds = {named: columns[named].dtype for named in names.values()}
            yield {
                "prompt": owner,
                "text": [prompts[i][0].text for i in owner],
                "position": store.positions(rows).tolist(),
                "token": store.tokens(rows).tolist(),
                **{
                    named: [_as(prompts[i][1].get(name), kinds[named]) for i in owner]
                    for name, named in names.items()
                },
                **{str(site): list(store.at(site, rows).numpy()) for site in sites},
            }

    _write(out, columns, batches)
    return len(store)


def _labels(metadata: Sequence[Mapping[str, Any]], column: str) -> tuple[int, ...]:
    values = [about.get(column) for about in metadata]
    if all(value is None for value in values):
        return ()
    for value in values:
        if value not in (0, 1):
            raise ActivationError(
                f"labels are 1 or 0; the column '{column}' holds {value!r}: name another by "
                "label=, or choose rows by where="
            )
    return tuple(int(value) for value in values if value is not None)


def _common_length(store: "ActivationStore") -> int:
    counts = torch.bincount(store.prompt_index(), minlength=store.n_prompts)
    if len(counts.unique()) > 1:
        raise OutputError(
            f"the prompts have {int(counts.min())} to {int(counts.max())} rows, and SAELens reads "
            "windows of one length; give context_size"
        )
    return int(counts[0])


def _kind(values: Sequence[Any]) -> str:
    """The type of a column; a mixed one is text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {bool}:
        return "bool"
    if kinds <= {int}:
        return "int64"
    return "float64" if kinds <= {int, float} else "string"


def _as(value: Any, kind: str) -> Any:
    return str(value) if kind == "string" and value is not None else value


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` if all went well."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} is there and not an empty folder; choose another")
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if out.exists():
            out.rmdir()
        (temporary / "dataset").rename(out)
    except OSError as error:
        raise OutputError(
            f"cannot write {out}: {error.strerror or error}; choose a folder that is writable and "
            "has space for the dataset twice"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(
    out: Path, columns: Mapping[str, Any], batches: Callable[[], Iterator[dict[str, Any]]]
) -> None:
    """Write batches as a dataset on disk; holds one batch in memory."""
    import datasets
    from datasets.arrow_writer import ArrowWriter

    with _new_folder(out) as folder:
        stream = str(folder / "stream.arrow")
        writer = ArrowWriter(path=stream, features=datasets.Features(columns))
        for batch in batches():
            writer.write_batch(batch)
        writer.finalize()
        shown = datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            datasets.Dataset.from_file(stream).save_to_disk(str(folder / "dataset"))
        finally:
            None if shown else datasets.enable_progress_bars()

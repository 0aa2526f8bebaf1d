"""`steerkit capture`: a contrast in, activations out; or a dataset in, a store out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steerkit.commands import inputs
from steerkit.commands import options as o
from steerkit.commands.console import Answer, say, table
from steerkit.commands.outputs import check_free
from steerkit.commands.store import view_of

if TYPE_CHECKING:
    from steerkit.activations import Activations
    from steerkit.extraction import GroupMoments

OUT = Path("activations.safetensors")


def command(
    model: o.Model,
    contrast: o.ContrastFile = "",
    dataset: Annotated[
        str,
        typer.Option(
            help="Instead of a contrast: a .jsonl, .parquet, .csv or .txt file, a folder of them, "
            "or the name of a dataset of the Hugging Face hub. [cyan]--out[/] is then a folder."
        ),
    ] = "",
    out: o.OutFile = OUT,
    part: o.Part = "fit",
    streams: o.Streams = "resid_post",
    layers: o.Layers = "",
    positions: Annotated[
        str,
        typer.Option(
            help="What becomes a row: last (the last prompt token), mean_prompt, a token index, "
            "or all (one row a token)."
        ),
    ] = "last",
    limit: Annotated[
        int,
        typer.Option(help="At most so many prompts a side, or rows of a dataset; 0: all.", min=0),
    ] = 0,
    template: o.Template = "auto",
    split: Annotated[str, typer.Option(help="Of a dataset of the hub.")] = "train",
    text_column: Annotated[str, typer.Option(help="Of a dataset: what holds the text.")] = "",
    sum_by: Annotated[
        str,
        typer.Option(
            help="Of a dataset: keep no activations, but counts, means and covariances by the "
            "classes of this column."
        ),
    ] = "",
    group_by: Annotated[
        str, typer.Option(help="With --sum-by: also by this column, to leave groups out later.")
    ] = "",
    store_as: Annotated[
        str, typer.Option(help="Of a dataset: float32, bfloat16, float16 or int8.")
    ] = "float32",
    on_bad_row: Annotated[
        str,
        typer.Option(
            help="Of a dataset: a row that is empty, too long or not text is an error, or skip, "
            "or truncate."
        ),
    ] = "error",
    max_tokens: Annotated[
        int, typer.Option(help="Of a dataset: the longest prompt; 0: the context.", min=0)
    ] = 0,
    rows_per_shard: Annotated[
        int, typer.Option(help="Of a dataset: prompts a file; 0 chooses.", min=0)
    ] = 0,
    workers: Annotated[int, typer.Option(help="Of a dataset: processes.", min=1)] = 1,
    address: Annotated[
        str, typer.Option(help="Of a dataset: a Ray cluster (auto, HOST:PORT, or local).")
    ] = "",
    gpus: Annotated[
        float,
        typer.Option(
            help="With --address: GPUs a worker; -1: one where the cluster has any. Several hold "
            "a model that --device auto spreads.",
            min=-1,
        ),
    ] = -1,
    device: o.Device = "",
    dtype: o.Dtype = "",
    seed: o.Seed = 0,
    force: o.Force = False,
) -> Answer:
    """Record what a model's streams hold while it reads prompts.

    A dataset goes into a folder, which the same command goes on with after a crash; with more
    layers, it adds them. See [cyan]steerkit store[/].

    \b
    Examples:
      steerkit capture -m organism:aligned -c requests.jsonl
      steerkit capture -m ./my-model -c builtin:sentiment --layers 4-12
      steerkit capture -m gpt2 -c pairs.csv --part all --positions mean_prompt
      steerkit capture -m gpt2 --dataset web.parquet --layers 6 --positions all --out acts
      steerkit capture -m gpt2 --dataset web.jsonl --out acts --workers 4 --on-bad-row skip
      steerkit capture -m gpt2 --dataset web.jsonl --out sums --sum-by label
    """
    import steerkit as sk
    from steerkit.errors import PromptError
    from steerkit.pipeline import part_of

    if bool(contrast) == bool(dataset):
        raise PromptError("give either --contrast (two piles of prompts) or --dataset")
    if contrast:
        check_free([out], force=force)
        chosen = part_of(inputs.read_contrast(contrast, template), part, seed=seed, limit=limit)
        at = inputs.read_layers(layers)
        loaded = inputs.open_model(model, device, dtype)
        say(f"capturing {chosen}")
        found = sk.capture(
            loaded,
            chosen,
            streams=inputs.read_names(streams),
            layers=at,
            positions=inputs.read_positions(positions),
        )
        found.save(out)
        return _captured(found, out, part)
    if out == OUT:
        raise PromptError("a dataset's activations go into a folder: give --out DIR")
    given: dict[str, Any] = {"device": device, "dtype": dtype}
    common: dict[str, Any] = {
        "out": out,
        "streams": inputs.read_names(streams),
        "layers": inputs.read_layers(layers),
        "positions": inputs.read_positions(positions),
        "split": split,
        "text_column": text_column,
        "template": template,
        "limit": limit or None,
        "max_tokens": max_tokens or None,
        "on_bad_row": on_bad_row,
        "workers": workers,
        "address": address or None,
        "gpus": None if gpus < 0 else gpus,
        "model_options": {key: value for key, value in given.items() if value},
    }
    size = rows_per_shard or None
    if sum_by:
        say(f"summing {dataset} by {sum_by} into {out}")
        sums = sk.dataset_moments(
            model, dataset, classes=sum_by, groups=group_by, rows_per_task=size, **common
        )
        return _summed(sums, out)
    say(f"capturing {dataset} into {out}")
    store = sk.capture_dataset(model, dataset, dtype=store_as, rows_per_shard=size, **common)
    return Answer({"store": str(out), **store.to_json()}, view_of(store))


def _summed(sums: "GroupMoments", out: Path) -> Answer:
    cells = list(sums.counts.items())
    shown = [(label, group, f"{n:,}") for (label, group), n in cells[:20]]
    if len(cells) > 20:
        shown.append(("...", "", f"{len(cells) - 20} more"))
    return Answer(
        {
            "sums": str(out),
            "model": sums.info.to_json(),
            "sites": [str(site) for site in sums.sites],
            "pooling": sums.pooling,
            "counts": [[*cell, n] for cell, n in cells],
        },
        table(f"Summed into {out}", "class", "group", "rows", rows=shown),
    )


def _captured(found: "Activations", out: Path, part: str) -> Answer:
    return Answer(
        {
            "activations": str(out),
            "model": found.info.to_json(),
            "contrast_sha256": found.contrast_sha256,
            "part": part,
            "prompts": len(found.prompts),
            "rows": len(found),
            "sites": [str(site) for site in found.sites],
        },
        table(
            "Captured",
            "what",
            "value",
            rows=[
                ("model", found.info.name),
                ("prompts", f"{sum(found.labels)} positive, {found.labels.count(0)} negative"),
                ("sites", f"{found.sites[0]} .. {found.sites[-1]} ({len(found.sites)})"),
                ("written", str(out)),
            ],
        ),
    )

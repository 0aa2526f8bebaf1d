"""`steerkit store info`, `verify` and `export`: folders of activations of whole datasets."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from steerkit.commands import console, inputs
from steerkit.commands.console import BAD_INPUT, OK, Answer, say, stack, table

if TYPE_CHECKING:
    from steerkit.stores import ActivationStore

HELP = """Stores of activations, as steerkit capture --dataset writes them.

\b
Examples:
  steerkit store info acts
  steerkit store verify acts
  steerkit store export acts --to saelens --out cached --context-size 128
"""

app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

StoreFolder = Annotated[Path, typer.Argument(help="The store's folder.", show_default=False)]


def info(folder: StoreFolder) -> Answer:
    """Say what a store holds: model, dataset, sites, rows, what storing lost, what is missing.

    \b
    Examples:
      steerkit store info acts
      steerkit store info acts --json
      steerkit store info acts --json | jq .errors
    """
    store = _open(folder)
    return Answer(store.to_json(), view_of(store))


def verify(
    folder: StoreFolder,
    mark: Annotated[
        bool, typer.Option(help="Note what is damaged, so that the next run makes it anew.")
    ] = True,
) -> Answer:
    """Read every file of a store and compare its hash with its record. Exit code 2 if it differs.

    \b
    Examples:
      steerkit store verify acts
      steerkit store verify acts --no-mark
      steerkit store verify acts --json
    """
    store = _open(folder)
    say(f"reading {len(store.manifest.tasks())} shards of {folder}")
    found = store.verify(mark=mark)
    listed = [
        (name, kind)
        for kind, names in (
            ("missing", found.missing),
            ("damaged", found.damaged),
            ("prompts damaged", found.damaged_prompts),
        )
        for name in names
    ]
    parts: list[RenderableType] = [Text(found.summary())]
    if listed:
        parts.insert(0, table(str(folder), "file", "what", rows=listed[:50]))
    return Answer(found.to_json(), stack(*parts), OK if found.ok else BAD_INPUT)


def export(
    folder: StoreFolder,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="A new or empty folder.", show_default=False)
    ],
    to: Annotated[
        str, typer.Option(help="saelens (its cached activations) or dataset (Hugging Face).")
    ] = "saelens",
    sites: Annotated[
        str, typer.Option(help="Such as resid_post@12, comma-separated. Default: all.")
    ] = "",
    context_size: Annotated[
        int, typer.Option(help="For saelens: rows a window; 0: every prompt's length.", min=0)
    ] = 0,
) -> Answer:
    """Write a store as other libraries read it.

    \b
    Examples:
      steerkit store export acts --to saelens --out cached --context-size 128
      steerkit store export acts --to dataset --out acts-hf
      steerkit store export acts --to dataset --sites resid_post@6 --out acts-hf
    """
    from steerkit.errors import MethodError
    from steerkit.registry import suggest

    kinds = ("saelens", "dataset")
    if to not in kinds:
        raise MethodError(f"a store is not exported to '{to}'; {suggest(to, kinds)}")
    store = _open(folder)
    chosen = inputs.read_names(sites) or None
    say(f"exporting {folder} to {out}")
    if to == "saelens":
        rows = store.export_saelens(out, chosen, context_size=context_size or None)
    else:
        rows = store.export_dataset(out, chosen)
    left = len(store) - rows
    note = f"; {left} rows at the end fill no window" if left else ""
    return Answer(
        {"out": str(out), "to": to, "rows": rows, "left_out": left},
        Text(f"{rows:,} rows written to {out}{note}"),
    )


def view_of(store: "ActivationStore") -> RenderableType:
    """A store as a table."""
    about = store.to_json()
    data = about["dataset"]
    bad = data["bad_rows"]
    skipped = f", {len(bad['skipped'])} skipped" if bad["skipped"] else ""
    shortened = f", {len(bad['truncated'])} shortened" if bad["truncated"] else ""
    done = about["shards"] - about["missing"]
    rows = [
        ("model", about["model"]),
        ("dataset", f"{data['name']} ({data['fingerprint'][:12]})"),
        ("prompts", f"{about['prompts']:,}{skipped}{shortened}"),
        ("rows", "not finished" if about["rows"] is None else f"{about['rows']:,}"),
        ("pooling", about["pooling"]),
        ("shards", f"{done:,} of {about['shards']:,}, {about['bytes'] / 1e6:,.1f} MB"),
        ("columns", ", ".join(data["columns"]) or "none"),
    ]
    for site, kind in about["sites"].items():
        lost = about["errors"].get(site, {}).get("max_relative", 0.0)
        rows.append((site, f"{kind}, relative error at most {lost:.2g}" if lost else kind))
    return table(about["path"], "what", "value", rows=rows)


def _open(folder: Path) -> "ActivationStore":
    from steerkit.stores import ActivationStore

    return ActivationStore(folder)


for name, function in (("info", info), ("verify", verify), ("export", export)):
    console.register(app, name, function)

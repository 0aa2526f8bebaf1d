"""`steerkit convert`: steering vectors from one tool's format into another's."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from steerkit.commands import inputs
from steerkit.commands import options as o
from steerkit.commands.console import Answer, say, stack, table
from steerkit.commands.outputs import check_free

if TYPE_CHECKING:
    from steerkit.formats import Written
    from steerkit.interventions import Operator

FORMATS_HELP = (
    "gguf (llama.cpp, repeng), caa, refusal_direction, lm_eval, steerkit (directions), "
    "steering (interventions)"
)


def command(
    source: Annotated[
        Path,
        typer.Argument(
            help="What to read: a file, or a folder of caa or refusal_direction files.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="File or folder to write.", show_default=False),
    ],
    to: Annotated[
        str, typer.Option(help=f"Format to write: {FORMATS_HELP}. Default: by the ending.")
    ] = "",
    source_format: Annotated[
        str, typer.Option("--from", help="Format to read. Default: told from the source.")
    ] = "",
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="The model that the vectors are for, where they do not say it."
        ),
    ] = "",
    at: Annotated[
        str,
        typer.Option(help="Site of a lone vector that does not say it, such as resid_pre@14."),
    ] = "",
    layers: o.Layers = "",
    methods: Annotated[
        str, typer.Option(help="Only these methods, comma-separated. Default: all.")
    ] = "",
    device: o.Device = "",
    dtype: o.Dtype = "",
    transfer: o.Transfer = False,
    force: o.Force = False,
) -> Answer:
    """Convert steering vectors between tools, and name what the target format cannot hold.

    Places are converted (llama.cpp counts block outputs, refusal_direction block inputs, the
    harness module names) and the conversion is printed. Files are never executed.

    \b
    Examples:
      steerkit convert directions.safetensors --layers 14 -o joy.gguf
      steerkit convert joy.gguf -m Qwen/Qwen2.5-1.5B-Instruct --to steering -o joy.safetensors
      steerkit convert run/direction.pt -m MODEL --to lm_eval -o steer.pt
      steerkit convert steering.safetensors --to lm_eval -o steer.pt --json
    """
    import warnings

    from steerkit.formats import write_vectors
    from steerkit.formats.verbs import acting, named, opened

    name = to or named(out)
    _check_place(out, name, force=force)
    loaded = inputs.open_model(model, device, dtype) if model else None
    found, directions = opened(
        source, source_format or None, model=loaded, at=at or None, force=transfer
    )
    for text in found.warnings:
        say(f"{source}: {text}")
    operators = acting(found, directions)
    kept = inputs.filtered(directions, inputs.read_layers(layers), inputs.read_names(methods))
    chosen = [op for op in operators if any(op.directions[0] is d for d in kept)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is dropped is said below
        written = write_vectors(chosen, out, name)
    return Answer(
        {
            "source": str(source),
            "from": found.format,
            "warnings": list(found.warnings),
            "read": [op.describe() for op in chosen],
            "conventions": [v.convention for v in found.vectors],
            **written.to_json(),
        },
        converted_view(written, chosen, found.format),
    )


def converted_view(
    written: "Written", operators: "list[Operator]", source_format: str
) -> RenderableType:
    """The vectors, how places were restated, and what is lost."""
    rows = []
    for op in operators:
        direction = op.directions[0]
        rows.append(
            (
                ", ".join(map(str, op.sites)),
                op.name,
                f"{op.strength:g}",
                f"{direction.scale:.4g}",
                {1: "+1 (checked)", -1: "-1 (checked)"}.get(direction.polarity, "not checked"),
                "yes" if set(op.sites) & set(written.sites) else "no",
            )
        )
    made = table(
        f"{source_format} to {written.format}",
        "site", "action", "strength", "norm of the vector", "polarity", "written",
        rows=rows,
    )  # fmt: skip
    notes = Text()
    for text in written.conversions:
        notes.append(f"converted: {text}\n", style="dim")
    for loss in written.losses:
        mark, style = ("DROPPED", "bold red") if loss.dropped else ("lost", "yellow")
        notes.append(f"{mark}: {loss}\n", style=style)
    notes.append(f"written: {', '.join(map(str, written.paths))}", style="dim")
    return stack(made, notes)


def _check_place(out: Path, name: str, *, force: bool) -> None:
    """Refuse an unknown format, or to write over what is there, before anything is read."""
    from steerkit.errors import OutputError
    from steerkit.formats import FORMATS

    if not FORMATS[name].folder or out.suffix:
        check_free([out], force=force)
    elif out.is_dir() and any(out.iterdir()) and not force:
        raise OutputError(f"{out} is not empty; pass --force to write into it, or choose another")
    else:
        check_free([out / "direction.pt"], force=True)

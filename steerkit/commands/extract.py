"""`steerkit extract`: activations in, directions out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from steerkit.commands import inputs
from steerkit.commands import options as o
from steerkit.commands.console import Answer, say, table
from steerkit.commands.outputs import check_free

if TYPE_CHECKING:
    from steerkit.direction import Directions


def command(
    activations: Annotated[
        Path, typer.Argument(help="What capture wrote (.safetensors).", show_default=False)
    ],
    methods: o.Methods = o.ALL_METHODS,
    out: o.OutFile = Path("directions.safetensors"),
    model: Annotated[
        str, typer.Option("--model", "-m", help="Also note the tokens each direction reads to.")
    ] = "",
    folds: Annotated[
        int,
        typer.Option(
            help="Folds of the held-out scores; each needs a group (a pair) of either side. 0 "
            "fits without scoring.",
            min=0,
        ),
    ] = 5,
    device: o.Device = "",
    dtype: o.Dtype = "",
    seed: o.Seed = 0,
    force: o.Force = False,
) -> Answer:
    """Fit a direction at every captured site, with several methods, and score each with nulls.

    \b
    Examples:
      steerkit extract activations.safetensors
      steerkit extract activations.safetensors --methods mean_difference,lda
      steerkit extract activations.safetensors -o dirs.safetensors --json
    """
    from steerkit.activations import Activations
    from steerkit.extraction import extract

    check_free([out], force=force)
    found = Activations.load(activations)
    loaded = inputs.open_model(model, device, dtype) if model else None
    names = inputs.read_names(methods)
    say(f"fitting {', '.join(names)} at {len(found.sites)} sites")
    directions = extract(found, names, model=loaded, n_folds=folds, seed=seed)
    directions.save(out)
    return Answer(
        {
            "directions": str(out),
            "model": found.info.name,
            "fitted": [
                {
                    "site": str(d.site),
                    "method": d.method,
                    "scale": d.scale,
                    "polarity": d.polarity,
                    "scores": d.scores.to_json() if d.scores else None,
                }
                for d in directions
            ],
        },
        directions_table(directions, title=f"Directions written to {out}"),
    )


def directions_table(directions: "Directions", *, title: str, most: int = 12) -> Table:
    """The best directions by held-out AUC, each with what chance and text alone give."""
    ranked = sorted(directions, key=lambda d: -(d.scores.auc.value if d.scores else 0.0))
    rows = []
    for d in ranked[:most]:
        s = d.scores
        rows.append(
            (
                str(d.site),
                d.method,
                f"{s.auc}" if s else "",
                f"{s.permutation.q95:.2f}" if s else "",
                f"{s.random.q95:.2f}" if s else "",
                f"{s.text.value:.2f}" if s and s.text else "",
                f"{d.scale:.3g}",
            )
        )
    more = f" (best {most} of {len(ranked)})" if len(ranked) > most else ""
    return table(
        title + more,
        "site",
        "method",
        "AUC [95%]",
        "permuted q95",
        "random q95",
        "text alone",
        "scale",
        rows=rows,
    )

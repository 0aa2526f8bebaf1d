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
        Path,
        typer.Argument(
            help="What capture wrote: a .safetensors file, or the folder of a dataset.",
            show_default=False,
        ),
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
    between: Annotated[
        str, typer.Option(help="Of a folder of sums: the two classes, positive first.")
    ] = "1,0",
    without: Annotated[
        str, typer.Option(help="Of a folder of sums: groups to leave out, comma-separated.")
    ] = "",
    penalty: Annotated[float, typer.Option(help="Of a folder of sums: of ridge.", min=0)] = 100.0,
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
      steerkit extract sums --methods mean_difference,lda --without violence,theft
    """
    from steerkit.extraction import extract
    from steerkit.stores.statistics import TOTAL

    check_free([out], force=force)
    names = inputs.read_names(methods)
    if (activations / TOTAL).is_file():
        directions = _from_sums(activations / TOTAL, names, methods, between, without, penalty)
        name = directions[0].model.name
    else:
        found = inputs.read_activations(activations)
        name = found.info.name
        loaded = inputs.open_model(model, device, dtype) if model else None
        say(f"fitting {', '.join(names)} at {len(found.sites)} sites")
        directions = extract(found, names, model=loaded, n_folds=folds, seed=seed)
    directions.save(out)
    return Answer(
        {
            "directions": str(out),
            "model": name,
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


def _from_sums(
    file: Path, names: tuple[str, ...], asked: str, between: str, without: str, penalty: float
) -> "Directions":
    """Directions from what `capture --sum-by` wrote; they are not scored."""
    from steerkit.errors import ActivationError
    from steerkit.extraction import GroupMoments, extract_from_moments
    from steerkit.extraction.streaming import ESTIMATORS

    sums = GroupMoments.load(file)
    sides = inputs.read_names(between)
    if len(sides) != 2:
        raise ActivationError(
            f"--between names two classes, positive first; got '{between}', and there are "
            f"{', '.join(sums.classes)}"
        )
    if asked == o.ALL_METHODS:  # all that need no rows and no pairs
        names = tuple(name for name in ESTIMATORS if name != "pca")
    say(f"fitting {', '.join(names)} at {len(sums.sites)} sites, from sums")
    moments = sums.between(*sides, without=inputs.read_names(without))
    return extract_from_moments(moments, names, penalty=penalty)


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

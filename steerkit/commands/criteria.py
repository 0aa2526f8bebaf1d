"""`steerkit criteria`: where two piles of prompts differ, by every criterion, without steering."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from steerkit.commands import inputs
from steerkit.commands import options as o
from steerkit.commands.console import Answer, say, stack, table
from steerkit.commands.outputs import staged, write_result

if TYPE_CHECKING:
    from steerkit.activations import Activations
    from steerkit.searches import CriteriaTable

FILES = ("criteria.json", "criteria.html")


def command(
    activations: Annotated[
        list[Path] | None,
        typer.Argument(
            help="What capture wrote (.safetensors), one file a position. Without, prompts are "
            "read with --model and --contrast.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help=o.MODEL_HELP)] = "",
    contrast: Annotated[
        str,
        typer.Option("--contrast", "-c", help="Two piles of prompts, as for [cyan]capture[/]."),
    ] = "",
    criteria: Annotated[
        str, typer.Option(help="Which criteria, comma-separated. Default: all of them.")
    ] = "",
    positions: Annotated[
        str,
        typer.Option(
            help="Positions, comma-separated, read in one pass: last, mean_prompt, token indices."
        ),
    ] = "last,-2,mean_prompt",
    normalise: Annotated[
        str, typer.Option(help="States as they are (none), over their root mean square (rms).")
    ] = "none,rms",
    n_resamples: Annotated[
        int, typer.Option(help="Resamples of the groups, for errors and winners.", min=0)
    ] = 200,
    n_permutations: Annotated[
        int, typer.Option(help="Permutations of the labels, for the null; 0 for none.", min=0)
    ] = 199,
    streams: o.Streams = "resid_post",
    layers: o.Layers = "",
    part: o.Part = "fit",
    limit: o.Limit = 0,
    template: o.Template = "auto",
    out: o.Out = Path(),
    device: o.Device = "",
    dtype: o.Dtype = "",
    seed: o.Seed = 0,
    force: o.Force = False,
) -> Answer:
    """Rank sites and positions by how far apart the two sides are there, before any steering.

    Every criterion at every place, how often each place comes first when groups are
    resampled, what permuted labels give (p), and how far criteria agree. None of them is a
    causal claim: search is.

    \b
    Examples:
      steerkit criteria -m organism:aligned -c requests.jsonl
      steerkit criteria -m gpt2 -c pairs.csv --positions last,-2,-3 --layers 4-12
      steerkit criteria activations.safetensors --criteria js,auc,fisher
    """
    from steerkit.plotting.criteria import criteria_map
    from steerkit.searches import compare_criteria

    with staged(out, FILES, force=force) as folder:
        if activations:
            read = _loaded(activations, model, contrast)
        else:
            read = _captured(
                model, contrast, template, part, seed, limit, device, dtype,
                inputs.read_names(positions), inputs.read_names(streams), layers,
            )  # fmt: skip
        found = compare_criteria(
            read,
            inputs.read_names(criteria) or None,
            normalise=inputs.read_names(normalise),  # type: ignore[arg-type]
            n_resamples=n_resamples,
            n_permutations=n_permutations,
            seed=seed,
        )
        title = f"Criteria for '{found.provenance['concept']}' in {found.provenance['model']}"
        write_result(folder, "criteria", found.to_json(), criteria_map(found), title=title)
    written = [str(out / name) for name in FILES]
    return Answer({"files": written, **found.to_json()}, criteria_view(found, written))


def criteria_view(found: "CriteriaTable", written: list[str]) -> RenderableType:
    """The best place of each criterion."""
    rows = []
    for column in found.columns:
        place, share = found.winners[column.label]
        i = found.places.index(place)
        rows.append(
            (
                column.label,
                str(place.site),
                place.position,
                f"{column.values[i]:.3g}" + (f" ± {column.errors[i]:.1g}" if column.chosen else ""),
                f"{share:.0%}" if column.chosen else "",
                f"{column.null.p:.3g}" if column.null else "",
            )
        )
    made = table(
        f"Where {len(found.columns)} criteria are highest, of {len(found.places)} places",
        "criterion", "site", "position", "value ± s.e.", "first in", "p",
        rows=rows,
    )  # fmt: skip
    return stack(made, Text(f"written: {', '.join(written)}", style="dim"))


def _loaded(files: list[Path], model: str, contrast: str) -> "dict[str, Activations]":
    """Captured activations by position."""
    from steerkit.errors import MethodError

    if model or contrast:
        raise MethodError(
            "give captured activations, or --model and --contrast to capture them now, not both"
        )
    read: dict[str, Activations] = {}
    for file in files:
        acts = inputs.read_activations(file)
        if acts.pooling in read:
            raise MethodError(f"{file} was read at '{acts.pooling}', as another file; give it once")
        read[acts.pooling] = acts
    return read


def _captured(
    model: str,
    contrast: str,
    template: str,
    part: str,
    seed: int,
    limit: int,
    device: str,
    dtype: str,
    positions: tuple[str, ...],
    streams: tuple[str, ...],
    layers: str,
) -> "dict[str, Activations]":
    """All positions of a contrast's prompts, in one pass."""
    import steerkit as sk

    chosen = inputs.read_part(
        model, contrast, template, part, seed=seed, limit=limit,
        instead="criteria are read from what capture wrote, or from --model and --contrast",
    )  # fmt: skip
    at = inputs.read_layers(layers)
    loaded = inputs.open_model(model, device, dtype)
    say(f"reading {chosen} at {', '.join(positions)}")
    return sk.capture_positions(
        loaded,
        chosen,
        [inputs.read_positions(p) for p in positions],
        streams=streams,
        layers=at,
    )

"""`steerkit search`: directions in; the place, operator and strength that work, out."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from steerkit.commands import inputs
from steerkit.commands import options as o
from steerkit.commands.console import NOTHING_FOUND, OK, Answer, say, stack, table
from steerkit.commands.outputs import staged

if TYPE_CHECKING:
    from steerkit.searches import Sweep

FILES = ("sweep.json", "steering.safetensors", "direction.safetensors")


def command(
    directions: o.DirectionsFile,
    contrast: o.ContrastFile,
    model: o.RecordedModel = "",
    operator: o.Operators = "ablate",
    aim: o.Aim = "reduce",
    objective: o.Objective = "refusal",
    towards: o.Towards = [],  # noqa: B006 (typer reads the default)
    away: o.Away = [],  # noqa: B006
    positions: o.Rules = "all,last_prompt",
    references: o.References = "zero,negative_mean",
    strengths: o.Strengths = "",
    guard: o.Guards = "kl",
    max_kl: o.MaxKL = 0.1,
    also: o.Also = [],  # noqa: B006
    checkpoint: o.CheckpointFile = "",
    n_random: o.NRandom = 199,
    layers: o.Layers = "",
    methods: Annotated[
        str, typer.Option(help="Only directions of these methods. Default: all in the file.")
    ] = "",
    part: o.Part = "search",
    limit: o.Limit = 0,
    template: o.Template = "auto",
    out: o.Out = Path(),
    device: o.Device = "",
    dtype: o.Dtype = "",
    seed: o.Seed = 0,
    force: o.Force = False,
) -> Answer:
    """Find where and how strongly a direction works, on prompts it was not fitted on.

    Every direction is tried with every operator, position rule and strength; what moves a
    guarded prompt too far is ruled out; the choice is measured once more on unseen prompts,
    beside random directions of the same size. Exits with 3 if nothing keeps to the guard.

    \b
    Examples:
      steerkit search directions.safetensors -c requests.jsonl
      steerkit search directions.safetensors -c requests.jsonl --operator ablate,clamp
      steerkit search directions.safetensors -c requests.jsonl --operator add --aim induce
      steerkit search d.safetensors -c pairs.csv --operator add --towards happy --away sad
    """
    from steerkit.direction import Directions
    from steerkit.files import write_text
    from steerkit.interventions import save_steering
    from steerkit.pipeline import part_of
    from steerkit.searches import search
    from steerkit.searches.guards import LIMITS

    with staged(out, FILES, force=force) as folder:
        prompts = part_of(inputs.read_contrast(contrast, template), part, seed=seed, limit=limit)
        chosen = inputs.filtered(
            Directions.load(directions), inputs.read_layers(layers), inputs.read_names(methods)
        )
        loaded = inputs.open_model(model or chosen[0].model.name, device, dtype)
        say(f"searching with {len(chosen)} directions on {prompts}")
        sweep = search(
            loaded,
            chosen,
            prompts,
            intervene=inputs.read_names(operator),
            strengths=inputs.read_numbers(strengths),
            positions=inputs.read_names(positions),
            references=inputs.read_names(references),
            objective=inputs.read_objective(objective, towards, away),
            aim=inputs.read_aim(aim),
            guard={
                g: max_kl if g == "kl" else LIMITS.get(g, 0.0) for g in inputs.read_names(guard)
            },
            transfer={name: inputs.read_contrast(name, template) for name in also},
            checkpoint=checkpoint or None,
            n_random=n_random,
            seed=seed,
        )
        write_text(folder / "sweep.json", json.dumps(sweep.to_json(), indent=1))
        if sweep.found:
            save_steering(folder / "steering.safetensors", sweep.best.intervention)
            sweep.best.direction.save(folder / "direction.safetensors")
    written = [str(out / name) for name in (FILES if sweep.found else FILES[:1])]
    return Answer(
        {
            "found": sweep.found,
            "files": written,
            "best": sweep.best.to_json() if sweep.found else None,
            "final": _brief(sweep),
            "candidates": len(sweep.rows),
        },
        sweep_view(sweep, written),
        OK if sweep.found else NOTHING_FOUND,
    )


def sweep_view(sweep: "Sweep", written: list[str]) -> RenderableType:
    """The best candidates and what the choice does to unseen prompts."""
    best = sweep.best if sweep.found else None
    ranked = sorted(sweep.rows, key=lambda r: (r is best, r.allowed, r.effect.value), reverse=True)
    # Eighty columns are few: what all candidates share is not told again in each row.
    several = len({r.method for r in sweep.rows}) > 1
    rows = [
        (
            str(r.site),
            *([r.method] if several else []),
            r.how,
            r.positions,
            f"{r.strength:g}",
            f"{r.value}",
            f"{r.guard.value:.3g}" if r.guard else "",
            "yes" if r.allowed else "no",
        )
        for r in ranked[:8]
    ]
    made = table(
        f"{len(sweep.rows)} candidates; plain {sweep.objective} {sweep.plain}",
        "site",
        *(["method"] if several else []),
        "operator",
        "positions",
        "strength",
        sweep.objective,
        sweep.cost or "guard",
        "allowed",
        rows=rows,
    )
    return stack(made, Text(sweep.summary()), Text(f"written: {', '.join(written)}", style="dim"))


def _brief(sweep: "Sweep") -> dict[str, object] | None:
    if sweep.final is None:
        return None
    return {k: v for k, v in sweep.final.to_json().items() if k != "items"}

"""`steerkit calibrate`: directions in; strengths that spend the same, out."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import RenderableType
from rich.text import Text

from steerkit.commands import inputs
from steerkit.commands import options as o
from steerkit.commands.console import NOTHING_FOUND, OK, Answer, plain_numbers, say, stack, table
from steerkit.commands.outputs import staged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steerkit.direction import Direction
    from steerkit.searches import Calibrations, Verified
    from steerkit.searches.calibration.gauges import Statistic

FILES = ("calibration.json", "calibrated.safetensors")
VERIFIED = ("verified.json",)


def command(
    directions: o.DirectionsFile,
    contrast: o.ContrastFile,
    model: o.RecordedModel = "",
    operator: Annotated[
        str, typer.Option(help="Operators to calibrate: add, ablate, clamp, ...; comma-separated.")
    ] = "add",
    kl: Annotated[
        float, typer.Option("--kl", help="Budget of KL per answer token, in nats.", min=0)
    ] = 0.1,
    statistic: Annotated[
        str, typer.Option(help="What of the KL meets the budget: mean, or p95 over tokens.")
    ] = "mean",
    effect: Annotated[
        float,
        typer.Option(help="Instead of a budget: the change of --objective to reach.", min=0),
    ] = 0.0,
    objective: o.Objective = "refusal",
    towards: o.Towards = [],  # noqa: B006 (typer reads the default)
    away: o.Away = [],  # noqa: B006
    aim: o.Aim = "reduce",
    positions: Annotated[
        str, typer.Option(help="Tokens to steer: all, prompt, last_prompt or generated.")
    ] = "all",
    reference: Annotated[
        str, typer.Option(help="What ablation moves to: zero, negative_mean, positive_mean.")
    ] = "zero",
    at_most: Annotated[
        float,
        typer.Option(help="Largest strength. Default: 64 for additions, 1 for the others.", min=0),
    ] = 0.0,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Measure the strengths that the file holds again, and find no others."
        ),
    ] = False,
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
    """Find the strength of every direction that spends the same KL, so that they compare.

    KL is that of the steered to the plain model on the plain model's own answers to the side
    of the contrast that is to be left alone. Half of its groups find the strengths, the other
    half says what they spend. The directions are written again with their strengths in them,
    and --verify measures those again. Exits with 3 if no direction can meet the goal, or if a
    strength does not do what its record says.

    \b
    Examples:
      steerkit calibrate directions.safetensors -c requests.jsonl
      steerkit calibrate directions.safetensors -c requests.jsonl --kl 0.5 --statistic p95
      steerkit calibrate directions.safetensors -c requests.jsonl --operator add,ablate
      steerkit calibrate directions.safetensors -c requests.jsonl --effect 0.5
      steerkit calibrate calibrated.safetensors -c requests.jsonl --verify
    """
    from steerkit.direction import Directions
    from steerkit.files import write_text
    from steerkit.pipeline import part_of
    from steerkit.searches import calibrate
    from steerkit.searches import verify as measure_again

    with staged(out, VERIFIED if verify else FILES, force=force) as folder:
        prompts = part_of(inputs.read_contrast(contrast, template), part, seed=seed, limit=limit)
        chosen = inputs.filtered(
            Directions.load(directions), inputs.read_layers(layers), inputs.read_names(methods)
        )
        loaded = inputs.open_model(model or chosen[0].model.name, device, dtype)
        target = inputs.read_objective(objective, towards, away)
        if verify:
            say(f"verifying {len(chosen)} directions on {prompts}")
            again = [
                (d, v)
                for d in chosen
                if d.calibrations
                for v in measure_again(loaded, d, prompts, objective=target)
            ]
            return _verified(again, folder / VERIFIED[0], out / VERIFIED[0])
        say(f"calibrating {len(chosen)} directions on {prompts}")
        found = calibrate(
            loaded,
            chosen,
            prompts,
            kl=kl,
            effect=(target, effect) if effect else None,
            statistic=cast("Statistic", statistic),  # calibrate refuses others
            intervene=inputs.read_names(operator),
            aim=inputs.read_aim(aim),
            positions=positions,
            reference=reference,
            at_most=at_most or None,
            seed=seed,
        )
        write_text(folder / FILES[0], json.dumps(plain_numbers(found.to_json()), indent=1))
        found.directions.save(folder / FILES[1])
    written = [str(out / name) for name in FILES]
    return Answer(
        {"met": len(found.met), "files": written, **found.to_json()},
        calibrations_view(found, written),
        OK if len(found.met) else NOTHING_FOUND,
    )


def _verified(again: "Sequence[tuple[Direction, Verified]]", place: Path, out: Path) -> Answer:
    """What was measured again, beside what was recorded."""
    from steerkit.errors import DirectionError
    from steerkit.files import write_text

    if not again:
        raise DirectionError(
            "no direction of this file holds a calibrated strength; verify the "
            f"{FILES[1]} that calibrate writes"
        )
    told = [{"direction": str(d), **v.to_json()} for d, v in again]
    write_text(place, json.dumps(plain_numbers(told), indent=1))
    rows = [
        (
            str(d),
            f"{v.record.operator} x{v.record.strength:.3g}",
            str(v.record.achieved),
            str(v.measured),
            "yes" if v.agrees else "NO",
        )
        for d, v in again
    ]
    same = "the same prompts" if again[0][1].same_prompts else "other prompts"
    made = table(
        f"{len(again)} strengths measured again on {same}",
        "direction",
        "operator",
        "recorded",
        "measured",
        "agrees",
        rows=rows,
    )
    agree = all(v.agrees for _, v in again)
    data = {"agree": agree, "files": [str(out)], "verified": told}
    return Answer(
        data, stack(made, Text(f"written: {out}", style="dim")), OK if agree else NOTHING_FOUND
    )


def calibrations_view(found: "Calibrations", written: list[str]) -> RenderableType:
    """Every strength, and what it spends on held-out prompts."""
    record = found[0].record
    rows = [
        (
            str(c.site),
            c.direction.method,
            c.operator,
            f"{c.strength:.3g}",
            str(c.achieved),
            c.status,
        )
        for c in found
    ]
    made = table(
        f"{record.quantity} {record.statistic}, goal {record.goal:g} {record.unit}",
        "site",
        "method",
        "operator",
        "strength",
        "held out",
        "status",
        rows=rows,
    )
    return stack(made, Text(found.summary()), Text(f"written: {', '.join(written)}", style="dim"))

"""`steerkit monitor`: a direction as an alarm, with its recall at a rate of false positives."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.text import Text

from steerkit.commands import inputs
from steerkit.commands import options as o
from steerkit.commands.console import NOTHING_FOUND, OK, Answer, plain_numbers, say, stack, table
from steerkit.commands.outputs import staged

if TYPE_CHECKING:
    from steerkit.concepts.monitor_scores import Reduce, Tokens

FILES = ("monitor.json", "monitor.html", "items.jsonl")


def command(
    directions: o.DirectionsFile,
    contrast: o.ContrastFile,
    model: o.RecordedModel = "",
    paraphrases: Annotated[
        str,
        typer.Option(
            help="The same in other words: a .jsonl, .json or .csv file of rows with 'text' (of "
            "a prompt of the contrast) and 'rewrite' (a text, or a list of them)."
        ),
    ] = "",
    fpr: Annotated[
        float, typer.Option(help="Share of negative prompts that may raise the alarm.")
    ] = 0.01,
    confidence: Annotated[
        float,
        typer.Option(help="Share of calibrations that keep the rate; 0: it holds on average."),
    ] = 0.0,
    tokens: Annotated[
        str, typer.Option(help="What is read: prompt, last (its last token), or answer.")
    ] = "prompt",
    reduce: Annotated[str, typer.Option(help="Over these tokens: max or mean.")] = "max",
    layers: o.Layers = "",
    methods: Annotated[
        str, typer.Option(help="Only directions of these methods. Default: all in the file.")
    ] = "",
    part: o.Part = "audit",
    n_random: o.NRandom = 199,
    max_new_tokens: o.MaxNew = 32,
    limit: o.Limit = 0,
    template: o.Template = "auto",
    out: o.Out = Path(),
    device: o.Device = "",
    dtype: o.Dtype = "",
    seed: o.Seed = 0,
    force: o.Force = False,
) -> Answer:
    """Use a direction as an alarm: what it catches, and what it really lets through.

    Half of the negative prompts' groups fix the threshold, the other half says how often it
    is crossed for no reason. Random directions and the words alone pass through the same
    calibration. Of several directions, the one with the highest recorded AUC is taken. Exits
    with 3 if there are too few negatives for the rate: 1% takes 99 that calibrate.

    \b
    Examples:
      steerkit monitor directions.safetensors -c requests.jsonl
      steerkit monitor directions.safetensors -c other.jsonl --part all --layers 2
      steerkit monitor directions.safetensors -c other.jsonl --paraphrases rewrites.jsonl
      steerkit monitor directions.safetensors -c other.jsonl --tokens answer --fpr 0.05
    """
    from steerkit.concepts import evaluate_monitor
    from steerkit.direction import Directions
    from steerkit.files import write_text
    from steerkit.pipeline import part_of
    from steerkit.plotting.awareness import monitor_curve
    from steerkit.plotting.redteam import page
    from steerkit.redteam.result import fragment

    with staged(out, FILES, force=force) as folder:
        prompts = part_of(inputs.read_contrast(contrast, template), part, seed=seed, limit=limit)
        rewrites = _rewrites(paraphrases, {p.text for p in prompts.prompts}) if paraphrases else {}
        chosen = inputs.filtered(
            Directions.load(directions), inputs.read_layers(layers), inputs.read_names(methods)
        )
        direction = Directions(tuple(chosen)).best
        loaded = inputs.open_model(model or direction.model.name, device, dtype)
        say(f"{direction} as an alarm on {prompts}")
        found = evaluate_monitor(
            loaded,
            direction,
            prompts,
            paraphrases=rewrites,
            fpr=fpr,
            confidence=confidence or None,
            tokens=cast("Tokens", tokens),  # evaluate_monitor refuses others
            reduce=cast("Reduce", reduce),
            max_new_tokens=max_new_tokens,
            n_random=n_random,
            seed=seed,
        )
        data = plain_numbers(found.to_json())
        write_text(folder / FILES[0], json.dumps(data, indent=1))
        figures = {"Recall against false positives": monitor_curve(found)}
        text = page(str(found.monitor), found.summary(), fragment("", *found.cells()), figures)
        write_text(folder / FILES[1], text)
        found.write_items(folder / FILES[2])
    head, rows = found.cells()
    written = [str(out / name) for name in FILES]
    view = stack(
        table(str(found.monitor), *head, rows=[tuple(row) for row in rows]),
        Text(found.summary()),
        Text(f"written: {', '.join(written)}", style="dim"),
    )
    return Answer(
        {"files": written, **found.to_json()}, view, OK if found.resolved else NOTHING_FOUND
    )


def _rewrites(path: str, known: set[str]) -> dict[str, list[str]]:
    """Rewrites by the text that they rewrite; those of prompts of other parts are left out.

    Raises:
        PromptError: no such file, rows without both fields, or none of these prompts.
    """
    from steerkit.errors import PromptError
    from steerkit.layouts import read_file

    found: dict[str, list[str]] = {}
    rows: Any = read_file(Path(path))
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], 1):
        if not isinstance(row, dict) or not row.get("text") or not row.get("rewrite"):
            raise PromptError(
                f"row {number} of {path} needs 'text' (a prompt of the contrast) and 'rewrite' "
                "(the same in other words, one or a list)"
            )
        if row["text"] in known:
            several = row["rewrite"]
            found.setdefault(row["text"], []).extend(
                [several] if isinstance(several, str) else several
            )
    if not found:
        raise PromptError(
            f"no row of {path} rewrites a prompt of this part of the contrast; 'text' repeats it "
            "word for word"
        )
    return found

"""`steerkit steer`: plain and steered answers side by side."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from steerkit.commands import inputs
from steerkit.commands import options as o
from steerkit.commands.console import Answer, say
from steerkit.commands.outputs import check_free
from steerkit.protocols import Completion


def command(
    steering: o.SteeringFile,
    prompt: Annotated[
        list[str], typer.Option("--prompt", "-p", help="Something to say; may be repeated.")
    ] = [],  # noqa: B006 (typer reads the default)
    prompts: Annotated[
        str, typer.Option(help="A file of prompts: a .json list, .jsonl records, or .txt lines.")
    ] = "",
    model: o.RecordedModel = "",
    strength: Annotated[
        str, typer.Option(help="Replace the strength; 0 leaves the model as it is.")
    ] = "",
    max_new_tokens: o.MaxNew = 40,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0.0)] = 0.0,
    template: o.Template = "auto",
    out: Annotated[
        str, typer.Option("--out", "-o", help="Also write the answers as JSONL to this file.")
    ] = "",
    device: o.Device = "",
    dtype: o.Dtype = "",
    transfer: o.Transfer = False,
    seed: o.Seed = 0,
    force: o.Force = False,
) -> Answer:
    """Let a steered model answer, with the plain one beside it.

    \b
    Examples:
      steerkit steer steering.safetensors -p "hello , how are you ?"
      steerkit steer steering.safetensors --prompts requests.txt -o answers.jsonl
      steerkit steer steering.safetensors -p "hi" --strength 0.5 --json
    """
    from steerkit.datasets import read_prompts
    from steerkit.errors import PromptError
    from steerkit.files import write_text
    from steerkit.prompts import Prompt

    if out:
        check_free([Path(out)], force=force)
    asked = [Prompt.of(p) for p in [*prompt, *(read_prompts(Path(prompts)) if prompts else [])]]
    if not asked:
        raise PromptError("nothing to answer; give --prompt TEXT or --prompts FILE")
    asked = inputs.rendered(asked, template)
    operators = inputs.read_steering(steering, strength)
    plain = inputs.open_model(model or inputs.recorded_model(operators), device, dtype)
    steered = inputs.steer(plain, operators, transfer=transfer)
    say(f"answering {len(asked)} prompts")
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    before, after = plain.generate(asked, **settings), steered.generate(asked, **settings)
    rows = [
        {"prompt": a.prompt.text, "plain": a.text, "steered": b.text}
        for a, b in zip(before, after, strict=True)
    ]
    if out:
        write_text(Path(out), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return Answer(
        {
            "steering": [op.describe() for op in operators],
            "model": plain.info.name,
            "answers": rows,
        },
        side_by_side(before, after, title="; ".join(op.describe() for op in operators)),
    )


def side_by_side(
    plain: Sequence[Completion], steered: Sequence[Completion], *, title: str
) -> Table:
    """Prompt, plain answer and steered answer, one row each."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
    for name, style in (("prompt", "dim"), ("plain", ""), ("steered", "bold")):
        made.add_column(name, style=style, ratio=1, overflow="fold")
    for a, b in zip(plain, steered, strict=True):
        made.add_row(*(escape(text.strip()) for text in (a.prompt.text, a.text, b.text)))
    return made

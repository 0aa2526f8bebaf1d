"""`steerkit serve`: the command that starts vLLM with steering, checked before it is typed."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from steerkit.commands.artefacts import Folder, folder_of, rows_of, silent_words
from steerkit.commands.console import Answer, say, stack, table

if TYPE_CHECKING:
    from steerkit.vllm.launch import Checked


def command(
    model: Annotated[
        str,
        typer.Argument(
            help="A Hugging Face causal LM by name or path, or a shipped model organism "
            "([cyan]organism:aligned[/]).",
            show_default=False,
        ),
    ],
    arguments: Annotated[
        list[str],
        typer.Argument(
            help="After [cyan]--[/], what vllm serve is given besides.", show_default=False
        ),
    ] = [],  # noqa: B006 (typer reads the default)
    steer: Annotated[
        list[str],
        typer.Option(
            "--steer",
            "-s",
            help="A steering file under the name that requests use: name=path; repeatable.",
        ),
    ] = [],  # noqa: B006
    default: Annotated[
        str,
        typer.Option(
            help="name or name:strength, for requests that say nothing about their steering."
        ),
    ] = "",
    port: Annotated[int, typer.Option(help="Where the server listens.", min=0)] = 8000,
    folder: Folder = "",
    allow_paths: Annotated[
        bool,
        typer.Option(
            "--allow-paths",
            help="Let clients name files by path; they then learn which files there are.",
        ),
    ] = False,
    run: Annotated[
        bool, typer.Option("--run", help="Start the server once it is checked.")
    ] = False,
) -> Answer:
    """Check a steered vLLM server and print the command that starts it.

    What is checked: vLLM and its version, that it will find the plugin, that the engine it would
    make can steer, and that every steering file belongs to this model. Requests then say
    "vllm_xargs": {"steerkit": "joy"}, or "none" for no steering where there is a default;
    steerkit artefacts changes names, strengths and the default while the server runs.

    \b
    Examples:
      steerkit serve organism:aligned --steer calm=steering.safetensors
      steerkit serve MODEL -s calm=a.safetensors -s joy=b.safetensors --default joy:0.5 --run
      steerkit serve MODEL -s calm=a.safetensors --json -- --max-model-len 4096 --dtype bfloat16
    """
    from steerkit.vllm.launch import checked, launch

    start = launch(
        model,
        _named(steer),
        folder=folder_of(folder),
        default=default,
        paths=allow_paths,
        arguments=("--port", str(port), *arguments),
    )
    say("checking what vLLM would make of it")
    found = checked(start)
    view = launch_view(found)
    if run:
        Console(stderr=True).print(view)
        typer.echo(start.command, err=True)
        os.execve(start.argv[0], start.argv, {**os.environ, **start.environment})
    return Answer(
        {
            "command": start.command,
            "environment": dict(start.environment),
            "arguments": [start.model, *start.arguments],
            "model": found.info.name,
            "fingerprint": found.info.fingerprint,
            "default": found.default,
            "artefacts": [one.to_json() for one in found.artefacts],
        },
        view,
        verbatim=start.command,
    )


def launch_view(found: "Checked") -> RenderableType:
    """What can be asked for, and what requests get that say nothing."""
    made = table(
        f"{found.info.name}: what requests can ask for",
        "name", "what it does", "strength", "sha256",
        rows=rows_of(found.artefacts),
    )  # fmt: skip
    return stack(made, Text(silent_words(found.default)))


def _named(given: list[str]) -> dict[str, Path]:
    from steerkit.errors import MethodError

    found: dict[str, Path] = {}
    for one in given:
        name, equals, path = one.partition("=")
        if not equals or name in found:
            raise MethodError(f"--steer reads name=path, each name once; got '{one}'")
        found[name] = Path(path)
    return found

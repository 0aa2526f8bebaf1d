"""`steerkit artefacts`: what a running vLLM server can be asked for, and live changes to it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from steerkit.commands import console
from steerkit.commands.console import Answer, stack, table

if TYPE_CHECKING:
    from steerkit.vllm import Artefacts
    from steerkit.vllm.listing import Listed

HELP = """What a vLLM server can be asked for, and changes while it runs.

Every process that shares the server's folder can change them (--folder, or
$STEERKIT_VLLM_FOLDER). A change counts for requests that come from then on; those under way
keep what they began with.

\b
Examples:
  steerkit artefacts list
  steerkit artefacts register joy joy.safetensors
  steerkit artefacts strength joy 0.5
  steerkit artefacts default joy
"""

app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

HERE = "steerkit-vllm"
Folder = Annotated[
    str,
    typer.Option(
        help="Where the server keeps its artefacts. Default: $STEERKIT_VLLM_FOLDER, else "
        f"{HERE} here."
    ),
]
Name = Annotated[str, typer.Argument(help="What requests say.", show_default=False)]


def list_(folder: Folder = "") -> Answer:
    """List names, what they do, their strengths in force, and which is the default.

    \b
    Examples:
      steerkit artefacts list
      steerkit artefacts list --folder /srv/steerkit-vllm
      steerkit artefacts list --json | jq '.artefacts[].name'
    """
    return _answer(_there(folder))


def register(
    name: Name,
    path: Annotated[Path, typer.Argument(help="A steering file.", show_default=False)],
    strength: Annotated[
        float | None,
        typer.Option(help="In place of each intervention's own.", show_default=False),
    ] = None,
    folder: Folder = "",
) -> Answer:
    """Let requests ask for a steering file by a name; a name that is there is given anew.

    \b
    Examples:
      steerkit artefacts register joy joy.safetensors
      steerkit artefacts register joy stronger.safetensors --strength 0.5
      steerkit artefacts register joy joy.safetensors --json
    """
    artefacts = _there(folder)
    artefacts.register(name, path, strength=strength)
    return _answer(artefacts)


def forget(name: Name, folder: Folder = "") -> Answer:
    """Take a name away; requests under way are not touched.

    \b
    Examples:
      steerkit artefacts forget joy
      steerkit artefacts forget joy --folder /srv/steerkit-vllm
      steerkit artefacts forget joy --json
    """
    artefacts = _there(folder)
    artefacts.forget(name)
    return _answer(artefacts)


def strength(
    name: Name,
    value: Annotated[
        str,
        typer.Argument(
            help="In place of each intervention's own; [cyan]own[/] for theirs again.",
            show_default=False,
        ),
    ],
    folder: Folder = "",
) -> Answer:
    """Put a strength in force for a name, for requests that bring none of their own.

    \b
    Examples:
      steerkit artefacts strength joy 0.5
      steerkit artefacts strength joy own
      steerkit artefacts strength joy -- -1
    """
    from steerkit.errors import InterventionError

    artefacts = _there(folder)
    try:
        wanted = None if value == "own" else float(value)
    except ValueError as error:
        raise InterventionError(f"a strength is a number, or 'own'; got '{value}'") from error
    artefacts.set_strength(name, wanted)
    return _answer(artefacts)


def default(
    wanted: Annotated[
        str,
        typer.Argument(help="name, name:strength, or [cyan]none[/].", show_default=False),
    ],
    folder: Folder = "",
) -> Answer:
    """Steer requests that say nothing about their steering.

    A request that wants none then says "none".

    \b
    Examples:
      steerkit artefacts default joy
      steerkit artefacts default joy:0.5
      steerkit artefacts default none
    """
    from steerkit.vllm.registrations import NONE, default_of

    artefacts = _there(folder)
    artefacts.set_default(*((None, None) if wanted == NONE else default_of(wanted)))
    return _answer(artefacts)


def folder_of(given: str) -> Path:
    """The folder that an option, the environment or this place names."""
    from steerkit.vllm.registrations import FOLDER

    return Path(given or os.environ.get(FOLDER) or HERE)


def rows_of(artefacts: "Sequence[Listed]") -> list[tuple[str, ...]]:
    """Rows of a table: name, what it does, strength, hash."""
    return [
        (
            f"{one.name} (default)" if one.default else one.name,
            f"refused: {one.problem}" if one.problem else "; ".join(one.interventions),
            "own" if one.strength is None else f"{one.strength:g}",
            one.digest[:12],
        )
        for one in artefacts
    ]


def silent_words(default: "Mapping[str, Any] | None") -> str:
    """What requests get that say nothing about their steering."""
    if not default:
        return "requests that say nothing are not steered"
    own = f" at strength {default['strength']:g}" if "strength" in default else ""
    return f"requests that say nothing get {default['artefact']}{own}"


def _there(given: str) -> "Artefacts":
    from steerkit.errors import OutputError
    from steerkit.vllm import Artefacts

    folder = folder_of(given)
    if not folder.is_dir():
        raise OutputError(
            f"no server keeps artefacts at {folder}; give the folder that steerkit serve printed "
            "with --folder or in STEERKIT_VLLM_FOLDER (a server makes it when it starts)"
        )
    return Artefacts(folder)


def _answer(artefacts: "Artefacts") -> Answer:
    from steerkit.vllm.listing import listed, listing

    found = listed(artefacts)
    made = table(
        str(artefacts.folder), "name", "what it does", "strength", "sha256", rows=rows_of(found)
    )
    return Answer(listing(artefacts), stack(made, Text(silent_words(artefacts.default))))


for name, function in (
    ("list", list_),
    ("register", register),
    ("forget", forget),
    ("strength", strength),
    ("default", default),
):
    console.register(app, name, function)

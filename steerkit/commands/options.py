"""Options that several commands share, each with its help in one place."""

from pathlib import Path
from typing import Annotated

import typer

from steerkit.prompts import Contrast

MODEL_HELP = (
    "A Hugging Face causal LM by name or path, or a shipped model organism "
    "([cyan]organism:aligned[/], base, compromised, constructed)."
)

Model = Annotated[str, typer.Option("--model", "-m", help=MODEL_HELP, show_default=False)]
RecordedModel = Annotated[
    str,
    typer.Option("--model", "-m", help=f"{MODEL_HELP} Default: the one the input was made on."),
]
ContrastFile = Annotated[
    str,
    typer.Option(
        "--contrast",
        "-c",
        help="Two piles of prompts: a .jsonl, .json or .csv file whose rows hold both sides "
        "(positive, negative) or a text and a label; or a built-in one "
        "([cyan]builtin:sentiment[/], builtin:politeness).",
        show_default=False,
    ),
]
Part = Annotated[
    str,
    typer.Option(
        help="Which part of the contrast: fit (half), search or audit (a quarter each), or all. "
        "The parts share no pair and no group, and follow from the seed alone."
    ),
]
Template = Annotated[
    str, typer.Option(help="How prompts are rendered: auto (chat where there is one), chat, raw.")
]
Streams = Annotated[
    str,
    typer.Option(help="Streams, comma-separated: resid_pre, attn_out, resid_mid, mlp_out, ..."),
]
Layers = Annotated[
    str, typer.Option(help="Layers from 0, such as [cyan]4-12[/] or [cyan]3,5[/]. Default: all.")
]
Methods = Annotated[
    str, typer.Option(help="Extraction methods, comma-separated (see [cyan]steerkit methods[/]).")
]
Seed = Annotated[int, typer.Option(help="Every random choice follows from it.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")]
OutFile = Annotated[Path, typer.Option("--out", "-o", help="File to write.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what stands at --out.")]
Limit = Annotated[
    int, typer.Option(help="At most this many prompts a side of each part; 0 takes all.", min=0)
]
MaxNew = Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; default: cuda if there is one.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")]


def read_layers(text: str) -> tuple[int, ...] | None:
    """Read `4-12`, `3,5` or nothing (all layers).

    Raises:
        SiteError: anything else.

    >>> read_layers("0,4-6")
    (0, 4, 5, 6)
    """
    from steerkit.errors import SiteError

    if not text.strip():
        return None
    found: list[int] = []
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise SiteError(f"layers read '3', '3,5' or '4-12', counted from 0; got '{text}'")
        found += range(int(first), int(last or first) + 1)
    if not found:
        raise SiteError(f"'{text}' names no layer: a range runs from the smaller to the larger")
    return tuple(dict.fromkeys(found))


def read_names(text: str) -> tuple[str, ...]:
    """Comma-separated names.

    >>> read_names("mean_difference, pca")
    ('mean_difference', 'pca')
    """
    return tuple(name.strip() for name in text.split(",") if name.strip())


def read_contrast(text: str, template: str = "auto") -> Contrast:
    """A contrast from a file or a built-in name.

    Raises:
        PromptError: no such file or name, an unreadable one, a missing side.
    """
    from steerkit import datasets
    from steerkit.errors import PromptError
    from steerkit.registry import suggest

    known = ("auto", "chat", "raw")
    if template not in known:
        raise PromptError(f"no template named '{template}'; {suggest(template, known)}")
    if text.startswith("builtin:"):
        name = text.removeprefix("builtin:")
        return Contrast.read(datasets.path(name), name=name, template=template)  # type: ignore[arg-type]
    return Contrast.read(text, template=template)  # type: ignore[arg-type]

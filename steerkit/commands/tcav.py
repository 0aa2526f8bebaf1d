"""`steerkit tcav`: whether an output depends on a concept, by derivatives along concept vectors."""

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
    from steerkit.concepts import Tcav
    from steerkit.concepts.targets import Target
    from steerkit.prompts import Contrast, Prompt

FILES = ("tcav.json", "tcav.html")


def command(
    model: o.Model,
    contrast: Annotated[
        list[str],
        typer.Option(
            "--contrast",
            "-c",
            help="A concept: two piles of prompts, as for [cyan]capture[/]; repeatable.",
            show_default=False,
        ),
    ],
    target: Annotated[
        list[str],
        typer.Option(
            help="An answer, of whose first token the log-probability is asked about; given "
            "twice, the difference of the two logits.",
            show_default=False,
        ),
    ],
    prompts: Annotated[
        str,
        typer.Option(
            help="Prompts whose output is asked about (.json, .jsonl, .txt). Default: the audit "
            "part of the first contrast, which no concept is fitted on."
        ),
    ] = "",
    quantity: Annotated[str, typer.Option(help="log_prob or logit of a single answer.")] = (
        "log_prob"
    ),
    method: Annotated[
        str, typer.Option(help="Extraction method of the concept vectors; supervised.")
    ] = "logistic",
    positions: Annotated[
        str, typer.Option(help="Tokens at which a concept is added in thought: last_prompt, all.")
    ] = "last_prompt",
    n_random: Annotated[
        int, typer.Option(help="Vectors fitted to permuted labels, for each cell.", min=1)
    ] = 499,
    streams: o.Streams = "resid_post",
    layers: o.Layers = "",
    limit: o.Limit = 0,
    template: o.Template = "auto",
    out: o.Out = Path(),
    device: o.Device = "",
    dtype: o.Dtype = "",
    seed: o.Seed = 0,
    force: o.Force = False,
) -> Answer:
    """Ask whether a model's answer depends on concepts, and beside it what chance says.

    Concept vectors are fitted on half of each contrast. The TCAV score is the share of prompts
    on which the answer rises along the vector; a concept counts as found where the sign test
    and the null of permuted labels agree, corrected over all concepts and sites.

    \b
    Examples:
      steerkit tcav -m MODEL -c mood.jsonl --target liked --target hated
      steerkit tcav -m gpt2 -c mood.jsonl --target " yes" --prompts reviews.txt --layers 4-8
      steerkit tcav -m MODEL -c mood.jsonl -c politeness.jsonl --target sorry
    """
    import steerkit as sk
    from steerkit.pipeline import part_of
    from steerkit.plotting.concepts import tcav_scores

    with staged(out, FILES, force=force) as folder:
        answers = _target(target)
        read = _named([inputs.read_contrast(text, template) for text in contrast])
        at = inputs.read_layers(layers)
        asked = _prompts(prompts, template, next(iter(read.values())), seed, limit)
        loaded = inputs.open_model(model, device, dtype)
        concepts = {}
        for name, whole in read.items():
            part = part_of(whole, "fit", seed=seed, limit=limit)
            say(f"reading {part}")
            concepts[name] = sk.capture(loaded, part, streams=inputs.read_names(streams), layers=at)
        found = sk.tcav(
            loaded,
            concepts,
            asked,
            answers,
            quantity=quantity,  # type: ignore[arg-type]
            method=method,
            positions=inputs.read_positions(positions),
            n_random=n_random,
            seed=seed,
        )
        title = f"Concepts that {found.target} of {loaded.info.name} depends on"
        write_result(folder, "tcav", found.to_json(), tcav_scores(found), title=title)
    written = [str(out / name) for name in FILES]
    return Answer({"files": written, **found.to_json()}, tcav_view(found, written))


def tcav_view(found: "Tcav", written: list[str]) -> RenderableType:
    """Every concept at every site."""
    rows = [
        (
            cell.concept,
            cell.site,
            str(cell.score),
            f"{cell.random_score.q95:.2f}",
            str(cell.sensitivity),
            f"{cell.p_adjusted:.3g}",
            "found" if cell.found else "",
        )
        for cell in found.cells
    ]
    made = table(
        f"Does {found.target} depend on a concept? {len(found.prompts)} prompts",
        "concept", "site", "TCAV score", "chance, 95% from 0.5", "nats per strength", "p, Holm", "",
        rows=rows,
    )  # fmt: skip
    told = found.summary().splitlines()[1:]
    return stack(made, *map(Text, told), Text(f"written: {', '.join(written)}", style="dim"))


def _target(texts: list[str]) -> "Target":
    from steerkit.errors import MethodError

    if len(texts) > 2:
        raise MethodError(f"a target is one answer or two; got {len(texts)}: {', '.join(texts)}")
    return (texts[0], texts[1]) if len(texts) == 2 else texts[0]


def _named(contrasts: "list[Contrast]") -> "dict[str, Contrast]":
    """Contrasts by name, which has to tell them apart."""
    from steerkit.errors import PromptError

    names = [contrast.name for contrast in contrasts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PromptError(f"two contrasts are called '{twice[0]}'; give files of different names")
    return dict(zip(names, contrasts, strict=True))


def _prompts(
    file: str, template: str, contrast: "Contrast", seed: int, limit: int
) -> "list[Prompt]":
    from steerkit.datasets import read_prompts
    from steerkit.pipeline import part_of
    from steerkit.prompts import Prompt

    if file:
        rows = [Prompt.of(row) for row in read_prompts(Path(file))]
        return inputs.rendered(rows[:limit] if limit else rows, template)
    return list(part_of(contrast, "audit", seed=seed, limit=limit).prompts)

"""`steerkit probe`: what a probe reads, and whether words or an untrained model would do."""

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
    from steerkit.models import LanguageModel
    from steerkit.probing import ProbeReport

FILES = ("probe.json", "probe.html")


def command(
    activations: Annotated[
        Path | None,
        typer.Argument(
            help="What capture wrote (.safetensors). Without, prompts are read with --model and "
            "--contrast.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help=f"{o.MODEL_HELP} Beside captured activations: the one they came from, for the "
            "untrained control.",
        ),
    ] = "",
    contrast: Annotated[
        str,
        typer.Option("--contrast", "-c", help="Two piles of prompts, as for [cyan]capture[/]."),
    ] = "",
    methods: Annotated[
        str,
        typer.Option(help="Methods to choose among, comma-separated: logistic, ridge, svm, lda."),
    ] = "logistic",
    untrained: Annotated[
        bool,
        typer.Option(help="Also probe the same architecture with weights that learnt nothing."),
    ] = True,
    categories: Annotated[
        bool, typer.Option(help="Leave each category out in turn, where prompts have them.")
    ] = True,
    n_folds: Annotated[int, typer.Option(help="Outer folds; one fewer are inner ones.")] = 5,
    n_permutations: Annotated[
        int, typer.Option(help="Permuted labellings, each through the whole selection.", min=0)
    ] = 199,
    n_random: o.NRandom = 199,
    streams: o.Streams = "resid_post",
    layers: o.Layers = "",
    positions: o.Positions = "last",
    part: o.Part = "all",
    limit: o.Limit = 0,
    template: o.Template = "auto",
    out: o.Out = Path(),
    device: o.Device = "",
    dtype: o.Dtype = "",
    seed: o.Seed = 0,
    force: o.Force = False,
) -> Answer:
    """Probe for a concept, beside every control that could explain it away.

    Layer and regularisation are chosen on inner folds and scored on outer ones. On the same
    folds stand permuted labels, random directions, the words alone and an untrained model; and
    categories are left out in turn. The verdict says whether the probe reads the topic.

    \b
    Examples:
      steerkit probe -m organism:aligned -c builtin:truth_topical
      steerkit probe -m gpt2 -c pairs.csv --layers 4-12 --methods logistic,ridge
      steerkit probe activations.safetensors --no-categories --json
    """
    from steerkit.plotting.probing import probe_controls
    from steerkit.probing import probe
    from steerkit.probing import untrained as drawn_afresh

    with staged(out, FILES, force=force) as folder:
        names = inputs.read_names(methods)
        if activations:
            acts, loaded = _loaded(activations, model, contrast, device, dtype, untrained=untrained)
        else:
            acts, loaded = _captured(
                model, contrast, template, part, seed, limit, device, dtype,
                positions, inputs.read_names(streams), layers,
            )  # fmt: skip
        blank = drawn_afresh(loaded, seed=seed) if untrained and loaded is not None else None
        say(f"probing {len(acts.sites)} sites with {', '.join(names)}")
        found = probe(
            acts,
            names,
            untrained=blank,
            categories="auto" if categories else False,
            n_folds=n_folds,
            n_permutations=n_permutations,
            n_random=n_random,
            seed=seed,
        )
        title = f"Probe of '{found.concept}' in {found.model}"
        write_result(folder, "probe", found.to_json(), probe_controls(found), title=title)
    written = [str(out / name) for name in FILES]
    return Answer({"files": written, **found.to_json()}, probe_view(found, written))


def probe_view(found: "ProbeReport", written: list[str]) -> RenderableType:
    """The table of controls under the verdict; accuracies are in the file."""
    head, rows = found.rows()
    made = table(
        f"A probe of '{found.concept}' beside its controls",
        *(*head[:2], *head[3:]),
        rows=[(*row[:2], *row[3:]) for row in rows],
    )
    return stack(Text(found.summary()), made, Text(f"written: {', '.join(written)}", style="dim"))


def _loaded(
    file: Path, model: str, contrast: str, device: str, dtype: str, *, untrained: bool
) -> "tuple[Activations, LanguageModel | None]":
    """Captured activations, and the model that they came from if it was named."""
    from steerkit.errors import MethodError

    if contrast:
        raise MethodError(
            "give captured activations, or --model and --contrast to capture them now, not both"
        )
    acts = inputs.read_activations(file)
    if not (model and untrained):
        return acts, None
    loaded = inputs.open_model(model, device, dtype)
    if loaded.info.fingerprint != acts.info.fingerprint:
        raise MethodError(
            f"{file} was captured on {acts.info.name}, not on {model}; name that model, or pass "
            "--no-untrained"
        )
    return acts, loaded


def _captured(
    model: str,
    contrast: str,
    template: str,
    part: str,
    seed: int,
    limit: int,
    device: str,
    dtype: str,
    positions: str,
    streams: tuple[str, ...],
    layers: str,
) -> "tuple[Activations, LanguageModel]":
    """A contrast's prompts, read now."""
    import steerkit as sk

    chosen = inputs.read_part(
        model, contrast, template, part, seed=seed, limit=limit,
        instead="probes read what capture wrote, or --model and --contrast",
    )  # fmt: skip
    at = inputs.read_layers(layers)
    loaded = inputs.open_model(model, device, dtype)
    say(f"reading {chosen}")
    acts = sk.capture(
        loaded, chosen, streams=streams, layers=at, positions=inputs.read_positions(positions)
    )
    return acts, loaded

"""`steerkit bias`: whether a model holds concepts closer to one of two others (BiasLens)."""

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
    from steerkit.concepts import BiasLens, SaeCodes
    from steerkit.models import LanguageModel
    from steerkit.prompts import Contrast

FILES = ("bias.json", "bias.html")
N_NEUTRAL = 64
"""Negatives of the references that perturbations start from."""


def command(
    model: o.Model,
    contrast: Annotated[
        list[str],
        typer.Option(
            "--contrast",
            "-c",
            help="A target concept: sentences about it, and the same about something else "
            "(positive, negative, group: the template); repeatable.",
            show_default=False,
        ),
    ],
    reference: Annotated[
        list[str],
        typer.Option(
            help="The two concepts compared with, as such contrasts: give it twice. A positive "
            "bias leans to the first.",
            show_default=False,
        ),
    ],
    sae: Annotated[
        list[str],
        typer.Option(
            help="Compare concepts as codes of this sparse autoencoder (a folder, RELEASE:ID "
            "or sae:organism), at its site; repeatable, one a site. Plain CAVs stand beside.",
        ),
    ] = [],  # noqa: B006 (typer reads the default and never changes it)
    variant: Annotated[
        str, typer.Option(help="How codes stand for a concept: perturbation, difference, encoder.")
    ] = "perturbation",
    method: Annotated[
        str, typer.Option(help="Of the concept vectors: mean_difference or logistic.")
    ] = "mean_difference",
    positions: o.Positions = "last",
    layers: o.Layers = "",
    gate: Annotated[
        float, typer.Option(help="Held-out AUC that probes need at a layer for it to count.")
    ] = 0.8,
    n_resamples: Annotated[
        int, typer.Option(help="Resamples of the templates, for intervals.", min=0)
    ] = 200,
    n_permutations: Annotated[
        int, typer.Option(help="Exchanges of the references, for the null.", min=0)
    ] = 999,
    n_random: o.NRandom = 999,
    template: o.Template = "auto",
    out: o.Out = Path(),
    device: o.Device = "",
    dtype: o.Dtype = "",
    seed: o.Seed = 0,
    force: o.Force = False,
) -> Answer:
    """Rank concepts by how much closer a model holds them to one of two others (BiasLens).

    A concept is the direction that tells sentences about it from the same sentences about
    something else; its bias is the difference of two cosines, over the layers at which all
    probes work on templates that they were not fitted on. Both nulls have to fall.

    \b
    Examples:
      steerkit bias -m MODEL -c nurse.csv -c pilot.csv --reference women.csv --reference men.csv
      steerkit bias -m MODEL -c pilot.csv --reference women.csv --reference men.csv --layers 4-8
      steerkit bias -m MODEL -c nurse.csv --reference w.csv --reference m.csv --sae FOLDER
    """
    import steerkit as sk
    from steerkit.plotting.concepts import bias_by_layer, bias_by_target

    with staged(out, FILES, force=force) as folder:
        one, other = _references([inputs.read_contrast(text, template) for text in reference])
        read = [inputs.read_contrast(text, template) for text in contrast]
        targets = {c.name: c for c in read}
        _require_different([c.name for c in (one, other, *read)])
        at = inputs.read_layers(layers)
        loaded = inputs.open_model(model, device, dtype)
        pooled = inputs.read_positions(positions)
        codes = _codes(loaded, sae, (one, other), variant, pooled) if sae else None
        say(f"comparing {len(targets)} concepts with {one.name} and {other.name}")
        found = sk.bias_lens(
            loaded,
            targets,
            (one, other),
            sites=at,
            positions=pooled,
            method=method,  # type: ignore[arg-type]
            represent=codes,
            gate=gate,
            n_resamples=n_resamples,
            n_permutations=n_permutations,
            n_random=n_random,
            seed=seed,
        )
        title = f"Between {one.name} and {other.name} in {loaded.info.name}"
        drawn = bias_by_target if found.ranked else bias_by_layer
        write_result(folder, "bias", found.to_json(), drawn(found), title=title)
    written = [str(out / name) for name in FILES]
    return Answer({"files": written, **found.to_json()}, bias_view(found, written))


def bias_view(found: "BiasLens", written: list[str]) -> RenderableType:
    """Every target, the one that leans most to the first reference on top."""
    one, other = found.references
    rest = [row for row in found.targets if not row.passed]
    rows = [
        (
            row.target,
            str(row.signed) if row.passed else "no layer passes the gate",
            f"{row.exchanged.p:.3g}",
            f"{row.random.p:.3g}",
            f"{row.p_adjusted:.3g}",
            "found" if row.found else "",
        )
        for row in (*found.ranked, *rest)
    ]
    made = table(
        f"Towards {one} (+) or {other} (-), {found.representation}",
        "target", "difference of cosines", "p exchanged", "p random", "p, Holm", "",
        rows=rows,
    )  # fmt: skip
    told = found.summary().splitlines()[1:]
    return stack(made, *map(Text, told), Text(f"written: {', '.join(written)}", style="dim"))


def _references(contrasts: "list[Contrast]") -> "tuple[Contrast, Contrast]":
    from steerkit.errors import MethodError

    if len(contrasts) != 2:
        raise MethodError(
            f"a bias lies between two references: give --reference twice; got {len(contrasts)}"
        )
    return contrasts[0], contrasts[1]


def _require_different(names: list[str]) -> None:
    from steerkit.errors import PromptError

    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PromptError(f"two contrasts are called '{twice[0]}'; give files of different names")


def _codes(
    model: "LanguageModel",
    names: list[str],
    references: "tuple[Contrast, Contrast]",
    variant: str,
    positions: str | int,
) -> "SaeCodes":
    """Codes of the autoencoders, from the references' negatives."""
    from steerkit.commands.sae import open_sae
    from steerkit.concepts import SaeCodes

    negatives = [p for contrast in references for p in contrast.negative]
    neutral = negatives[:: max(1, len(negatives) // N_NEUTRAL)][:N_NEUTRAL]
    return SaeCodes.of(
        model,
        [open_sae(name, model) for name in names],
        neutral,
        positions=positions,
        variant=variant,  # type: ignore[arg-type]
    )

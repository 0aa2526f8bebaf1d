"""`steerkit sae train`, `check`, `find` and `show`: sparse autoencoders and their features."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from steerkit.commands import console, inputs
from steerkit.commands import options as o
from steerkit.commands.console import Answer, say, stack, table
from steerkit.commands.outputs import staged

if TYPE_CHECKING:
    from steerkit.models import LanguageModel
    from steerkit.prompts import Prompt
    from steerkit.sae import Autoencoder

TRAIN_FILES = ("cfg.json", "sae_weights.safetensors")
FIND_FILES = ("features.json", "features.html", "directions.safetensors")
SHOW_FILES = ("cards.json", "cards.html")

HELP = """Sparse autoencoders (SAEs): train, check, find features for a contrast, look at them.

\b
Examples:
  steerkit sae check -m organism:aligned --sae sae:organism --texts texts.jsonl
  steerkit sae find -m organism:aligned --sae sae:organism -c requests.jsonl
  steerkit sae train -m MODEL --texts texts.jsonl --site resid_post@12 --out my-sae
"""

app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

SaeSource = Annotated[
    str,
    typer.Option(
        "--sae",
        help="A folder in SAELens' format, a release and id as [cyan]RELEASE:ID[/], or the one "
        "that ships for organism:aligned, [cyan]sae:organism[/].",
    ),
]
Texts = Annotated[
    str,
    typer.Option(
        "--texts",
        help="Prompts: a .txt (one a line), .jsonl, .json or .csv file with a field 'text', "
        "'prompt' or the like.",
        show_default=False,
    ),
]


def train(
    model: Annotated[
        str, typer.Option("--model", "-m", help="The model; not needed with --store.")
    ] = "",
    texts: Annotated[
        str,
        typer.Option(
            help="Prompts: a .txt (one a line), .jsonl, .json or .csv file; with --live any "
            "dataset that capture takes."
        ),
    ] = "",
    store: Annotated[
        Path | None,
        typer.Option(
            help="Instead: what capture --dataset --positions all wrote.", show_default=False
        ),
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Run the model while training; keep no activations.")
    ] = False,
    site: Annotated[str, typer.Option(help="Where, such as resid_post@12.")] = "",
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder.")] = Path("sae"),
    d_sae: Annotated[int, typer.Option(help="Features; 0: eight times the width.", min=0)] = 0,
    k: Annotated[
        float, typer.Option(help="Features on at a token; 0: an eighth of the width.", min=0)
    ] = 0,
    architecture: Annotated[
        str, typer.Option(help="batchtopk (saved as JumpReLU) or topk.")
    ] = "batchtopk",
    n_tokens: Annotated[int, typer.Option(help="Tokens to train on, with repeats.")] = 1_000_000,
    batch_size: Annotated[int, typer.Option(help="Tokens a step.", min=1)] = 1024,
    lr: Annotated[float, typer.Option(help="Adam's step size.")] = 3e-3,
    device: o.Device = "",
    dtype: o.Dtype = "",
    seed: o.Seed = 0,
    force: o.Force = False,
) -> Answer:
    """Train a small SAE with SAELens' trainer, and save it in SAELens' format.

    \b
    Examples:
      steerkit sae train -m MODEL --texts texts.jsonl --site resid_post@12 --out my-sae
      steerkit sae train -m MODEL --texts texts.txt --site 6 --d-sae 4096 --k 32
      steerkit sae train -m organism:base --texts texts.txt --site 1 --n-tokens 200000
      steerkit sae train --store acts --site 6 --n-tokens 10000000
    """
    from steerkit.errors import MethodError
    from steerkit.sae import train_sae

    if (store is not None) == bool(texts) or (texts and not (model and site)):
        raise MethodError(
            "an SAE is trained on --texts of a --model at a --site, or on a --store (at a --site "
            "where it holds several)"
        )
    with staged(out, TRAIN_FILES, force=force) as folder:
        source: Any
        prompts: Any = None
        if store is not None:
            from steerkit.stores import ActivationStore

            source = ActivationStore(store)
            say(f"training on {len(source):,} rows")
        else:
            prompts = texts if live else _texts(texts)
            source = inputs.open_model(model, device, dtype)
            say(f"training on {texts}" if live else f"training on {len(prompts)} texts")
        sae = train_sae(
            source,
            prompts,
            live=live,
            site=site or None,
            d_sae=d_sae or None,
            k=k or None,
            architecture=architecture,
            n_tokens=n_tokens,
            batch_size=batch_size,
            lr=lr,
            out=folder,
            seed=seed,
        )
    claims = sae.claims
    written = [str(out / name) for name in TRAIN_FILES]
    line = (
        f"{sae.d_sae} features of {sae.site}; on rows that no step saw: L0 "
        f"{claims['l0']:.3g}, variance explained {claims['variance_explained']:.3f}"
    )
    data = {**sae.to_json(), "name": out.name, "files": written}
    return Answer(data, stack(Text(line), _written(written)))


def check(
    model: o.Model,
    texts: Texts,
    sae: SaeSource = "sae:organism",
    site: Annotated[str, typer.Option(help="Where it belongs, if it does not say.")] = "",
    loss: Annotated[
        bool, typer.Option(help="Run the model with the reconstruction spliced in.")
    ] = True,
    limit: Annotated[int, typer.Option(help="At most this many texts; 0 takes all.", min=0)] = 500,
    device: o.Device = "",
    dtype: o.Dtype = "",
    force: Annotated[
        bool, typer.Option("--force", help="Report on an SAE that fails its checks, too.")
    ] = False,
) -> Answer:
    """Check that an SAE belongs to a model and does what it claims, on your texts.

    \b
    Examples:
      steerkit sae check -m organism:aligned --texts texts.jsonl
      steerkit sae check -m gpt2 --sae gpt2-small-res-jb:blocks.8.hook_resid_pre --texts web.txt
      steerkit sae check -m MODEL --sae my-sae --texts texts.txt --no-loss
    """
    from steerkit.sae import evaluate_sae

    prompts = _texts(texts)
    prompts = prompts[:limit] if limit else prompts
    loaded = inputs.open_model(model, device, dtype)
    found = open_sae(sae, loaded, prompts, site=site, force=force)
    data = found.to_json()
    checks = found.checks
    claimed = f"{checks['l0_claimed']:.3g}" if checks["l0_claimed"] else "nothing"
    rows = [
        ("tokens", str(checks["rows"])),
        ("L0", f"{checks['l0']:.3g} (it claims {claimed})"),
        ("variance explained", f"{checks['variance_explained']:.3f}"),
    ]
    if loss:
        quality = evaluate_sae(found, loaded, prompts)
        data["quality"] = quality.to_json()
        rows += [
            ("loss recovered", str(quality.loss_recovered)),
            ("KL, nats per token", str(quality.kl)),
            ("features never on", f"{quality.dead:.1%}"),
        ]
    notes = [Text(problem, style="red") for problem in checks["problems"]]
    return Answer(data, stack(table(repr(found), "measure", "value", rows=rows), *notes))


def find(
    model: o.Model,
    contrast: o.ContrastFile,
    sae: SaeSource = "sae:organism",
    n: Annotated[int, typer.Option(help="How many features to list.", min=1)] = 10,
    by: Annotated[str, typer.Option(help="Rank by auc or by difference of the means.")] = "auc",
    positions: Annotated[
        str, typer.Option(help="last (the last prompt token), a token index, or all.")
    ] = "last",
    pool: Annotated[str, typer.Option(help="With all tokens: max or mean.")] = "max",
    n_permutations: Annotated[int, typer.Option(help="Permuted labellings.", min=1)] = 999,
    limit: o.Limit = 0,
    template: o.Template = "auto",
    out: o.Out = Path(),
    device: o.Device = "",
    dtype: o.Dtype = "",
    seed: o.Seed = 0,
    force: o.Force = False,
) -> Answer:
    """Find the features that tell the two sides of a contrast apart.

    Half of the groups choose, the other half measures; beside each AUC stand what permuted
    labels give, corrected for all features, and what the words alone give.

    \b
    Examples:
      steerkit sae find -m organism:aligned -c requests.jsonl
      steerkit sae find -m MODEL --sae my-sae -c refusal.jsonl --by difference
      steerkit sae find -m MODEL --sae my-sae -c refusal.jsonl --positions all --pool max
    """
    from steerkit.captures import capture
    from steerkit.direction import Directions
    from steerkit.errors import DirectionError
    from steerkit.files import write_text
    from steerkit.sae import feature_dashboard, find_features

    with staged(out, FIND_FILES, force=force) as folder:
        sides = inputs.read_contrast(contrast, template)
        sides = sides.sample(limit, seed=seed) if limit else sides
        loaded = inputs.open_model(model, device, dtype)
        opened = open_sae(sae, loaded)
        acts = capture(
            loaded, sides, sites=[opened.site], positions=inputs.read_positions(positions)
        )
        found = find_features(
            opened, acts, n=n, by=by, pool=pool, n_permutations=n_permutations, seed=seed
        )
        directions = []
        for feature in found:
            try:
                directions.append(found.direction(feature.feature))
            except DirectionError as error:
                say(f"feature {feature.feature} gives no direction: {error}")
        if directions:
            Directions(tuple(directions)).save(folder / FIND_FILES[2])
        dashboard = feature_dashboard(opened, loaded, sides, found, n_contexts=5)
        write_text(folder / FIND_FILES[0], json.dumps(found.to_json(), indent=1))
        dashboard.write(folder / FIND_FILES[1])
    columns, rows = found.rows()
    written = [str(out / name) for name in FIND_FILES[: 3 if directions else 2]]
    view = stack(
        table(found.concept, *columns, rows=rows), Text(found.summary()), _written(written)
    )
    return Answer({**found.to_json(), "files": written}, view)


def show(
    model: o.Model,
    texts: Texts,
    features: Annotated[
        str, typer.Option(help="Their numbers, comma-separated.", show_default=False)
    ],
    sae: SaeSource = "sae:organism",
    n_contexts: Annotated[int, typer.Option(help="Contexts for each.", min=1)] = 8,
    limit: Annotated[int, typer.Option(help="At most this many texts; 0 takes all.", min=0)] = 0,
    out: o.Out = Path(),
    device: o.Device = "",
    dtype: o.Dtype = "",
    force: o.Force = False,
) -> Answer:
    """Show features: where they are most active, how active, and what they promote.

    \b
    Examples:
      steerkit sae show -m organism:aligned --texts texts.jsonl --features 14,50
      steerkit sae show -m MODEL --sae my-sae --texts texts.txt --features 7
      steerkit sae show -m MODEL --sae my-sae --texts texts.txt --features 7 --n-contexts 20
    """
    from steerkit.errors import MethodError
    from steerkit.files import write_text
    from steerkit.sae import feature_dashboard

    names = inputs.read_names(features)
    if not names or not all(name.isdigit() for name in names):
        raise MethodError(f"features are numbers, such as '3,14'; got '{features}'")
    with staged(out, SHOW_FILES, force=force) as folder:
        prompts = _texts(texts)
        prompts = prompts[:limit] if limit else prompts
        loaded = inputs.open_model(model, device, dtype)
        opened = open_sae(sae, loaded)
        found = feature_dashboard(
            opened, loaded, prompts, [int(name) for name in names], n_contexts=n_contexts
        )
        data = [view.to_json() for view in found]
        write_text(folder / SHOW_FILES[0], json.dumps(data, indent=1))
        found.write(folder / SHOW_FILES[1])
    written = [str(out / name) for name in SHOW_FILES]
    parts = [Text(view.card.summary() + "\n") for view in found]
    return Answer({"features": data, "files": written}, stack(*parts, _written(written)))


def open_sae(
    text: str,
    model: "LanguageModel",
    prompts: "list[Prompt] | None" = None,
    *,
    site: str = "",
    force: bool = False,
) -> "Autoencoder":
    """An SAE by folder, `RELEASE:ID` or `sae:organism`.

    Raises:
        ModelError: there is none, or it does not belong to the model.
    """
    from steerkit.sae import load_sae

    say(f"loading {text}")
    release, colon, sae_id = text.partition(":")
    folder = text.startswith("sae:") or not colon or Path(text).exists()
    return load_sae(
        text if folder else (release, sae_id),
        model=model,
        prompts=prompts,
        site=site or None,
        force=force,
    )


def _texts(path: str) -> "list[Prompt]":
    """Prompts from a file.

    Raises:
        PromptError: no such file, or none in it.
    """
    from steerkit.datasets import read_prompts
    from steerkit.prompts import Prompt

    return [Prompt.of(row) for row in read_prompts(Path(path))]


def _written(files: list[str]) -> Text:
    return Text(f"written: {', '.join(files)}", style="dim")


for name, function in (("train", train), ("check", check), ("find", find), ("show", show)):
    console.register(app, name, function)

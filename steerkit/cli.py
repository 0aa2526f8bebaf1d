"""The command line: `steerkit demo`, `steerkit run`, and the single steps between them."""

import typer

from steerkit import __version__
from steerkit.commands import (
    artefacts,
    audit,
    bias,
    calibrate,
    capture,
    certify,
    console,
    convert,
    criteria,
    demo,
    extract,
    monitor,
    patch,
    probe,
    redteam,
    run,
    sae,
    search,
    serve,
    steer,
    store,
    tcav,
)

HELP = f"""Find, apply and audit directions in the residual stream of language models.

\b
Start here:
  steerkit demo                  the whole job on a shipped model, offline
  steerkit run -m MODEL -c FILE  the same on your model and your prompts

\b
Or step by step, each reading what the one before it wrote:
  steerkit capture -m organism:aligned -c requests.jsonl
  steerkit extract activations.safetensors
  steerkit criteria activations.safetensors
  steerkit search directions.safetensors -c requests.jsonl
  steerkit calibrate directions.safetensors -c requests.jsonl
  steerkit steer steering.safetensors --prompt "hello"
  steerkit audit steering.safetensors -c requests.jsonl

\b
How well a model withstands steering, and whether steering is noticed:
  steerkit redteam attack -m MODEL --target truthfulness --data TruthfulQA.csv
  steerkit redteam detect -m MODEL --known prompts.jsonl

\b
Activations of a whole dataset, on one machine or many:
  steerkit capture -m MODEL --dataset web.parquet --positions all --out acts
  steerkit store verify acts

\b
Steering vectors of other tools, both ways:
  steerkit convert directions.safetensors --layers 14 -o joy.gguf

\b
Whether steering does the same in vLLM as here:
  steerkit certify --artefact steering.safetensors --prompts held_out.jsonl

\b
A vLLM server whose requests are steered each in its own way:
  steerkit serve MODEL --steer calm=steering.safetensors --run
  steerkit artefacts strength calm 0.5

\b
Features of sparse autoencoders:
  steerkit sae find -m organism:aligned --sae sae:organism -c requests.jsonl

\b
Where in the network the two sides of a pair part:
  steerkit patch -m MODEL -c pairs.jsonl

\b
What a direction catches as an alarm, at a stated rate of false ones:
  steerkit monitor directions.safetensors -c requests.jsonl

\b
Whether a probe reads the concept, or the topic:
  steerkit probe -m MODEL -c pairs.jsonl

\b
Whether an answer depends on a concept:
  steerkit tcav -m MODEL -c pairs.jsonl --target yes --target no

\b
Whether concepts lie closer to one of two others, without a test set:
  steerkit bias -m MODEL -c nurse.jsonl --reference women.jsonl --reference men.jsonl

{console.EXIT_CODES}
"""

app = typer.Typer(
    name="steerkit",
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"steerkit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version."
    ),
) -> None:
    pass


for name, module in (
    ("demo", demo),
    ("run", run),
    ("capture", capture),
    ("extract", extract),
    ("criteria", criteria),
    ("search", search),
    ("calibrate", calibrate),
    ("steer", steer),
    ("audit", audit),
    ("patch", patch),
    ("monitor", monitor),
    ("convert", convert),
    ("certify", certify),
    ("serve", serve),
    ("probe", probe),
    ("tcav", tcav),
    ("bias", bias),
):
    console.register(app, name, module.command)

app.add_typer(artefacts.app, name="artefacts")
app.add_typer(redteam.app, name="redteam")
app.add_typer(sae.app, name="sae")
app.add_typer(store.app, name="store")

"""`steerkit redteam attack` and `steerkit redteam detect`: an attack and its countermeasure."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from steerkit.commands import console, inputs
from steerkit.commands import options as o
from steerkit.commands.console import Answer, say, stack, table
from steerkit.commands.outputs import staged

if TYPE_CHECKING:
    from steerkit.datasets import AttackTarget
    from steerkit.prompts import Contrast, Prompt
    from steerkit.redteam import PublishedFaults

ATTACK_FILES = ("attack.json", "attack.html", "items.jsonl")
DETECT_FILES = ("detector.safetensors", "detection.json", "detection.html")
REQUESTS = "builtin:requests"

HELP = """Measure how a model withstands steering, and whether steering is noticed.

For models that you are allowed to test. Texts of sensitive prompt sets stay out of the results.

\b
Examples:
  steerkit redteam attack -m organism:aligned --target harmfulness --data builtin:requests
  steerkit redteam detect -m organism:aligned --known builtin:requests
  steerkit redteam detect -m MODEL --known prompts.jsonl --suspect OTHER
"""

app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def attack(
    model: o.Model,
    target: Annotated[
        str, typer.Option(help="truthfulness, toxicity, bias or harmfulness.", show_default=False)
    ],
    data: Annotated[
        str,
        typer.Option(
            help="TruthfulQA, ToxiGen, BOLD or AdvBench: a file, a folder, or a hub name; or "
            f"[cyan]{REQUESTS}[/], the organisms' own harmful requests.",
            show_default=False,
        ),
    ],
    control: Annotated[
        str, typer.Option(help="Harmless prompts on which KL is measured: a file.")
    ] = "",
    layers: Annotated[
        str, typer.Option(help="published (the first half), all, or numbers such as 4-12.")
    ] = "published",
    strengths: o.Strengths = "",
    base: Annotated[
        str, typer.Option(help="For sets without answers: a model that gives the wanted ones.")
    ] = "",
    lexicon: Annotated[
        str,
        typer.Option(help="For toxicity and bias: words to count, a stand-in for a judge."),
    ] = "",
    faults: Annotated[
        str, typer.Option(help="Faults of the published code to reproduce, comma-separated.")
    ] = "",
    max_kl: Annotated[
        float, typer.Option("--max-kl", help="KL that a strength may cost to be chosen.")
    ] = 1.0,
    n_random: Annotated[int, typer.Option(help="Null vectors of either kind.", min=0)] = 19,
    show_text: Annotated[
        bool, typer.Option("--show-text", help="Write prompts and answers of sensitive sets too.")
    ] = False,
    limit: Annotated[int, typer.Option(help="At most this many prompts; 0 takes all.", min=0)] = 0,
    max_new_tokens: o.MaxNew = 32,
    out: o.Out = Path("steerkit-attack"),
    device: o.Device = "",
    dtype: o.Dtype = "",
    seed: o.Seed = 0,
    force: o.Force = False,
) -> Answer:
    """Add one vector, fitted on other prompts, and measure what it does beside its nulls.

    \b
    Examples:
      steerkit redteam attack -m organism:aligned --target harmfulness --data builtin:requests
      steerkit redteam attack -m MODEL --target truthfulness --data TruthfulQA.csv --layers all
      steerkit redteam attack -m MODEL --target harmfulness --data advbench.csv --faults js_repo
    """
    from steerkit.files import write_text
    from steerkit.plotting.redteam import attack_page
    from steerkit.redteam import Lexicon, activation_attack
    from steerkit.redteam.attacking import STRENGTHS

    with staged(out, ATTACK_FILES, force=force) as folder:
        wrong = read_faults(faults)
        aimed = read_target(target, data, published_cut=wrong.toxigen_cut, limit=limit)
        loaded = inputs.open_model(model, device, dtype)
        if base:
            aimed = aimed.with_answers_of(inputs.open_model(base, device, dtype))
        say(f"attacking on {aimed!r}")
        found = activation_attack(
            loaded,
            aimed,
            judge=Lexicon(inputs.read_names(lexicon)) if lexicon else None,
            layers=layers if layers in ("published", "all") else inputs.read_layers(layers) or (),
            strengths=inputs.read_numbers(strengths) or STRENGTHS,
            control=read_known(control, seed) if control else None,
            max_kl=max_kl,
            n_random=n_random,
            n_shuffled=n_random,
            max_new_tokens=max_new_tokens,
            faults=wrong,
            show_text=show_text,
            seed=seed,
        )
        write_text(folder / "attack.json", _json(found.to_json()))
        write_text(folder / "attack.html", attack_page(found))
        write_text(folder / "items.jsonl", found.to_jsonl())
    written = [str(out / name) for name in ATTACK_FILES]
    rows = [
        (
            f"{r.strength:g}",
            str(r.success),
            f"{r.wanted.value:.3g}" if r.wanted else "–",
            f"{r.broken.value:.3g}" if r.broken else "–",
            f"{r.kl.value:.3g}" if r.kl else "–",
            f"{r.random.maximum:.3g}",
            f"{r.shuffled.maximum:.3g}",
        )
        for r in found.rows
    ]
    head = ("strength", "success", "as wanted", "broken", "KL", "random", "shuffled")
    data_out = {k: v for k, v in found.to_json().items() if k != "items"}
    return Answer(
        {**data_out, "files": written},
        stack(
            table(f"{found.target}, clean {found.clean}; nulls: highest", *head, rows=rows),
            *_said(found.summary(), written),
        ),
    )


def detect(
    model: o.Model,
    known: Annotated[
        str,
        typer.Option(
            help="Prompts that the model is known by: a file of prompts or of a contrast, "
            f"[cyan]{REQUESTS}[/], or a detector.safetensors made before.",
            show_default=False,
        ),
    ],
    suspect: Annotated[
        str, typer.Option(help="A model to judge; the trusted one (--model) is what it should be.")
    ] = "",
    steering: Annotated[
        str, typer.Option(help="Judge the trusted model under this steering file instead.")
    ] = "",
    benign: Annotated[
        list[str],
        typer.Option(help="A model that is not to be flagged, such as a known fine-tune."),
    ] = [],  # noqa: B006 (typer reads the default)
    strengths: o.Strengths = "",
    false_positives: Annotated[
        float, typer.Option(help="Share of clean prompts that may be flagged.", min=0, max=1)
    ] = 0.01,
    limit: o.Limit = 0,
    max_new_tokens: o.MaxNew = 16,
    out: o.Out = Path("steerkit-detect"),
    device: o.Device = "",
    dtype: o.Dtype = "",
    seed: o.Seed = 0,
    force: o.Force = False,
) -> Answer:
    """Tell from states on known prompts whether a model is steered.

    With --suspect or --steering it judges; otherwise it measures what it would see: ROC against
    strength, of random directions, on known prompts and on a third of them held back.

    \b
    Examples:
      steerkit redteam detect -m organism:aligned --known builtin:requests
      steerkit redteam detect -m organism:aligned --known prompts.jsonl --steering s.safetensors
      steerkit redteam detect -m MODEL --known detector.safetensors --suspect OTHER --json
    """
    from steerkit.files import write_text
    from steerkit.plotting.redteam import detection_page, page
    from steerkit.redteam import (
        Detector,
        attack_families,
        detection_power,
        fit_detector,
        known_prompts,
        random_direction,
    )
    from steerkit.redteam.power import STRENGTHS
    from steerkit.redteam.result import fragment

    with staged(out, DETECT_FILES, force=force) as folder:
        trusted = inputs.open_model(model, device, dtype)
        judging = bool(suspect or steering)
        others = None
        if known.endswith(".safetensors"):
            detector = Detector.load(known)
            detector.check(trusted)
        else:
            read = known_prompts(
                trusted, read_known(known, seed, limit), max_new_tokens=max_new_tokens
            )
            if not judging:
                read, others = read.split(2 / 3, seed=seed)
            say(f"fitting a detector on {len(read)} prompts")
            detector = fit_detector(
                trusted,
                read,
                benign=[inputs.open_model(name, device, dtype) for name in benign],
                rate=false_positives,
                seed=seed,
            )
        detector.save(folder / "detector.safetensors")
        if judging:
            accused = inputs.open_model(suspect, device, dtype) if suspect else trusted
            if steering:
                accused = inputs.steer(accused, inputs.read_steering(Path(steering)))
            verdict = detector.judge(accused)
            data, text = verdict.to_json(), verdict.summary()
            head, rows = verdict.cells()
            shown = page("Is this model steered?", text, fragment("", head, rows), {})
        else:
            if others is None:
                others, rest = detector.known.split(1 / 3, seed=seed)
                detector = fit_detector(trusted, rest, rate=false_positives, seed=seed)
            say("measuring what it sees of random directions at the middle layer")
            site = detector.sites[len(detector.sites) // 2]
            power = detection_power(
                trusted,
                detector,
                attack_families(random_direction(detector, site, seed=seed), seed=seed),
                others,
                strengths=inputs.read_numbers(strengths) or STRENGTHS,
                seed=seed,
            )
            data, text, shown = power.to_json(), power.summary(), detection_page(power)
            head, rows = power.cells()
            head, rows = head[:-1], [row[:-1] for row in rows if row[1] == "unseen"]
        write_text(folder / "detection.json", _json(data))
        write_text(folder / "detection.html", shown)
    written = [str(out / name) for name in DETECT_FILES]
    return Answer(
        {**data, "files": written}, stack(table("", *head, rows=rows), *_said(text, written))
    )


for _name, _function in (("attack", attack), ("detect", detect)):
    console.register(app, _name, _function)


def read_target(
    target: str, data: str, *, published_cut: bool = False, limit: int = 0
) -> "AttackTarget":
    """A target from its name and its data.

    Raises:
        MethodError: an unknown target.
        PromptError: data that cannot be read.
    """
    from dataclasses import replace

    from steerkit import datasets
    from steerkit.datasets.targets import TARGETS
    from steerkit.errors import MethodError
    from steerkit.registry import suggest

    if target not in TARGETS:
        raise MethodError(f"no target named '{target}'; {suggest(target, TARGETS)}")
    if data == REQUESTS:
        found = datasets.AttackTarget.of(
            target, datasets.refusal("held_out", limit or 160).positive
        )
    elif target == "truthfulness":
        found = datasets.truthfulqa(data)
    elif target == "toxicity":
        found = datasets.toxigen(data, published_cut=published_cut)
    elif target == "bias":
        found = datasets.bold(data)
    else:
        found = datasets.advbench(data)
    return replace(found, items=found.items[:limit]) if limit else found


def read_known(text: str, seed: int, limit: int = 0) -> "Contrast | Sequence[Prompt]":
    """Prompts from a file of prompts or of a contrast, or the organisms' requests.

    Raises:
        PromptError: an unreadable file.
    """
    from steerkit.datasets import read_prompts, refusal
    from steerkit.errors import PromptError
    from steerkit.prompts import Prompt

    if text == REQUESTS:
        return refusal("held_out", limit or 80, seed=seed)
    try:
        found = inputs.read_contrast(text)
        return found.sample(limit, seed=seed) if limit else found
    except PromptError:
        if text.startswith("builtin:") or Path(text).suffix == ".csv":
            raise
        prompts = [Prompt.of(row) for row in read_prompts(Path(text))]
        return prompts[:limit] if limit else prompts


def read_faults(text: str) -> "PublishedFaults":
    """Published faults by name.

    Raises:
        MethodError: an unknown one.
    """
    from dataclasses import fields

    from steerkit.errors import MethodError
    from steerkit.redteam import PublishedFaults
    from steerkit.registry import suggest

    known = tuple(f.name for f in fields(PublishedFaults))
    for name in inputs.read_names(text):
        if name not in known:
            raise MethodError(f"no published fault named '{name}'; {suggest(name, known)}")
    return PublishedFaults(**dict.fromkeys(inputs.read_names(text), True))


def _json(data: object) -> str:
    return json.dumps(console.plain_numbers(data), indent=1)


def _said(text: str, written: list[str]) -> list[RenderableType]:
    return [Text(text), Text(f"written: {', '.join(written)}", style="dim")]

"""`steerkit run`: the whole job on any model and any contrast."""

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.text import Text

from steerkit.commands import inputs
from steerkit.commands import options as o
from steerkit.commands.audit import report_view
from steerkit.commands.console import NOTHING_FOUND, OK, Answer, say, stack
from steerkit.commands.outputs import staged
from steerkit.commands.search import sweep_view

if TYPE_CHECKING:
    from steerkit.pipeline import Outcome


def command(
    model: o.Model,
    contrast: o.ContrastFile,
    out: o.Out = Path("steerkit-run"),
    methods: o.Methods = o.ALL_METHODS,
    operator: o.Operators = "ablate",
    aim: o.Aim = "reduce",
    objective: o.Objective = "refusal",
    towards: o.Towards = [],  # noqa: B006 (typer reads the default)
    away: o.Away = [],  # noqa: B006
    streams: o.Streams = "resid_post",
    layers: o.Layers = "",
    pooling: o.Positions = "last",
    positions: o.Rules = "all,last_prompt",
    references: o.References = "zero,negative_mean",
    strengths: o.Strengths = "",
    max_kl: o.MaxKL = 0.1,
    n_random: o.NRandom = 199,
    system_prompt: o.SystemPrompt = "",
    limit: o.Limit = 0,
    template: o.Template = "auto",
    max_new_tokens: o.MaxNew = 32,
    engine: o.Engine = "hf",
    device: o.Device = "",
    dtype: o.Dtype = "",
    seed: o.Seed = 0,
    force: o.Force = False,
) -> Answer:
    """Capture, extract, search, steer and audit: from two piles of prompts to a report.

    Half of the contrast is fitted on, a quarter searched on and a quarter audited on; the
    parts share no pair and no group. Exits with 3 if no candidate keeps to the guard.

    \b
    Examples:
      steerkit run -m organism:aligned -c requests.jsonl
      steerkit run -m Qwen/Qwen2.5-1.5B-Instruct -c refusal.jsonl --layers 8-20 --limit 128
      steerkit run -m ./my-model -c requests.csv --operator add --aim induce
      steerkit run -m ./my-model -c requests.csv --engine vllm
      steerkit run -m gpt2 -c pairs.jsonl --operator add --objective log_odds \\
          --towards " good" --away " bad" --aim induce
    """
    from steerkit.pipeline import FILES, Parts, Settings
    from steerkit.pipeline import run as run_job

    began = perf_counter()
    with staged(out, FILES, force=force) as folder:
        settings = Settings(
            methods=inputs.read_names(methods),
            streams=inputs.read_names(streams),
            layers=inputs.read_layers(layers),
            pooling=inputs.read_positions(pooling),
            operators=inputs.read_names(operator),
            positions=inputs.read_names(positions),
            references=inputs.read_names(references),
            strengths=inputs.read_numbers(strengths),
            objective=inputs.read_objective(objective, towards, away),
            aim=inputs.read_aim(aim),
            max_kl=max_kl,
            n_random=n_random,
            max_new_tokens=max_new_tokens,
            system_prompt=system_prompt or None,
            seed=seed,
        )
        settings.check()
        parts = Parts.of(inputs.read_contrast(contrast, template), seed=seed, limit=limit)
        loaded = inputs.open_model(model, device, dtype, engine)
        outcome = run_job(loaded, parts, settings, say=say)
        written = [str(out / path.name) for path in outcome.write(folder)]
    return answer(outcome, written, perf_counter() - began)


def answer(outcome: "Outcome", written: list[str], seconds: float) -> Answer:
    """What a finished job says: the choice, the verdict, and where the files are."""
    found = outcome.report
    data: dict[str, Any] = {
        "found": outcome.found,
        "best": outcome.sweep.best.to_json() if outcome.found else None,
        "verdict": found.verdict if found else None,
        "scores": [s.to_json() for s in found.scores] if found else [],
        "files": written,
        "seconds": round(seconds, 1),
    }
    view: RenderableType = (
        stack(
            Text(f"{outcome.sweep.summary()}\n"),
            report_view(found, written),
            Text(f"done in {seconds:.0f} s", style="dim"),
        )
        if found
        else sweep_view(outcome.sweep, written)
    )
    return Answer(data, view, OK if outcome.found else NOTHING_FOUND)

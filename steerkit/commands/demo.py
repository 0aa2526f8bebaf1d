"""`steerkit demo`: the whole job on a shipped model, offline, in under two minutes."""

from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer

from steerkit.commands import inputs
from steerkit.commands import options as o
from steerkit.commands.console import Answer, say, stack
from steerkit.commands.outputs import staged
from steerkit.commands.run import answer
from steerkit.commands.steer import side_by_side

HELD_OUT = 160
"""Unseen requests a side: half to search on, half to audit."""
SHOWN = 3
"""Answers shown of each side."""


def command(
    out: o.Out = Path("steerkit-demo"),
    size: Annotated[
        int, typer.Option(help="Harmful and harmless requests, each, to fit on.", min=24)
    ] = 160,
    seed: o.Seed = 0,
) -> Answer:
    """Find, steer away and audit the refusal that was planted in a small shipped model.

    Fits on harmful and harmless requests, searches and audits on others that share no word
    and no template with them, and writes a report. Needs no network; replaces the files of
    an earlier demo.

    \b
    Examples:
      steerkit demo
      steerkit demo --out my-demo --seed 1
      steerkit demo --json
    """
    from steerkit.datasets import refusal
    from steerkit.pipeline import FILES, Parts, Settings
    from steerkit.pipeline import run as run_job

    began = perf_counter()
    with staged(out, FILES, force=True) as folder:
        model = inputs.open_model("organism:aligned")
        parts = Parts.held_out(
            refusal("train", size, seed=seed), refusal("held_out", HELD_OUT, seed=seed), seed=seed
        )
        settings = Settings(
            methods=("mean_difference", "logistic", "lda"),
            # The right answer is wanted: a model broken into nonsense refuses nothing either.
            objective="unanswered",
            strengths=(0.6, 1.0),
            n_random=99,
            null_budget=15_000,
            max_new_tokens=16,
            seed=seed,
        )
        outcome = run_job(model, parts, settings, say=say)
        written = [str(out / path.name) for path in outcome.write(folder)]
    found = answer(outcome, written, perf_counter() - began)
    if outcome.steered is None:
        return found
    asked = [*parts.audit.positive[:SHOWN], *parts.audit.negative[:SHOWN]]
    shown = side_by_side(
        model.generate(asked, max_new_tokens=16),
        outcome.steered.generate(asked, max_new_tokens=16),
        title="Unseen requests: plain and steered answers",
    )
    return Answer(found.data, stack(shown, found.view), found.code)

"""Options that several commands share, each with its help in one place."""

from pathlib import Path
from typing import Annotated

import typer

MODEL_HELP = (
    "A Hugging Face causal LM by name or path, or a shipped model organism "
    "([cyan]organism:aligned[/], base, compromised, constructed); with [cyan]vllm:[/] before it, "
    "inside vLLM."
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
Positions = Annotated[
    str,
    typer.Option(
        help="What becomes a row: last (the last prompt token), mean_prompt, or a token index."
    ),
]
ALL_METHODS = "mean_difference,pca,logistic,lda"
Methods = Annotated[str, typer.Option(help="Extraction methods, comma-separated.")]
Operators = Annotated[
    str, typer.Option(help="Interventions to try: ablate, add, clamp, affine; comma-separated.")
]
Aim = Annotated[
    str,
    typer.Option(
        help="reduce the objective on positive prompts, or induce it on negative ones; the "
        "other side is guarded."
    ),
]
Objective = Annotated[
    str,
    typer.Option(
        help="What to move: refusal (rate of refusing answers), unanswered (anything but the "
        "right answer), log_odds (of two answers), label_accuracy, projection (on the deepest "
        "direction), or a check of the audit that reads answers."
    ),
]
Towards = Annotated[
    list[str], typer.Option(help="For log_odds: an answer that shows the concept; repeatable.")
]
Away = Annotated[list[str], typer.Option(help="For log_odds: an answer that does not; repeatable.")]
Rules = Annotated[
    str,
    typer.Option(help="Position rules to try: all, prompt, last_prompt, generated."),
]
References = Annotated[
    str,
    typer.Option(help="What ablation moves to: zero, negative_mean, positive_mean."),
]
Strengths = Annotated[
    str,
    typer.Option(help="Strengths to try, comma-separated. Default: each operator's own."),
]
MaxKL = Annotated[
    float,
    typer.Option("--max-kl", help="Guard: mean KL on guarded prompts, in nats per token."),
]
Guards = Annotated[
    str,
    typer.Option(
        "--guard",
        help="What must hold on guarded prompts: kl, perplexity, accuracy; comma-separated.",
    ),
]
Also = Annotated[
    list[str],
    typer.Option(
        "--also", help="Another contrast on which the choice is measured once; repeatable."
    ),
]
CheckpointFile = Annotated[
    str, typer.Option("--checkpoint", help="Keep measurements here; an interrupted search goes on.")
]
NRandom = Annotated[int, typer.Option(help="Random directions in each null; 0 for none.", min=0)]
SystemPrompt = Annotated[
    str, typer.Option(help="The same aim in words, for the prompting baseline.")
]
Seed = Annotated[int, typer.Option(help="Every random choice follows from it.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")]
OutFile = Annotated[Path, typer.Option("--out", "-o", help="File to write.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what stands at --out.")]
Limit = Annotated[
    int, typer.Option(help="At most this many prompts a side of each part; 0 takes all.", min=0)
]
MaxNew = Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)]
SteeringFile = Annotated[
    Path,
    typer.Argument(
        help="What search wrote: interventions with their directions (.safetensors).",
        show_default=False,
    ),
]
DirectionsFile = Annotated[
    Path, typer.Argument(help="What extract wrote (.safetensors).", show_default=False)
]
Transfer = Annotated[
    bool,
    typer.Option(
        "--transfer", help="Allow another model of the same width than the one it was made on."
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; default: cuda if there is one.")]
Engine = Annotated[
    str,
    typer.Option(help="What runs the model: hf, or vllm (the same as vllm: before its name)."),
]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")]

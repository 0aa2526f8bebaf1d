"""`steerkit certify`: does a steering file do the same on two engines?"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from steerkit.commands import inputs
from steerkit.commands import options as o
from steerkit.commands.console import NOTHING_FOUND, OK, Answer, say, stack, table
from steerkit.commands.outputs import check_free

if TYPE_CHECKING:
    from steerkit.vllm.parity import Certificate, SiteParity


def command(
    artefact: Annotated[
        Path,
        typer.Option(
            "--artefact", "-a", help="A steering file (.safetensors).", show_default=False
        ),
    ],
    engines: Annotated[
        str, typer.Option(help="The engines to compare: hf,vllm are the ones there are.")
    ] = "hf,vllm",
    prompt: Annotated[
        list[str], typer.Option("--prompt", "-p", help="Something to say; may be repeated.")
    ] = [],  # noqa: B006 (typer reads the default)
    prompts: Annotated[
        str, typer.Option(help="A file of prompts: a .json list, .jsonl records, or .txt lines.")
    ] = "",
    model: o.RecordedModel = "",
    max_new_tokens: o.MaxNew = 16,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="vLLM's compiled path instead of its eager one.")
    ] = False,
    tolerance: Annotated[
        float, typer.Option(help="Relative difference that streams and logits may have.", min=0.0)
    ] = 1e-4,
    template: o.Template = "auto",
    out: Annotated[
        str, typer.Option("--out", "-o", help="Also write the certificate as JSON to this file.")
    ] = "",
    transfer: o.Transfer = False,
    force: o.Force = False,
) -> Answer:
    """Run one steering file on the Hugging Face engine and on vLLM, and state what differs.

    Every steered stream, the logits, the greedy tokens, and which tokens were steered; beside
    each, what would be found if vLLM had left the steering out. Both engines run in float32.
    Exit code 3 where the certificate does not hold.

    \b
    Examples:
      steerkit certify --artefact steering.safetensors -p "hello , how are you ?"
      steerkit certify --artefact steering.safetensors --engines hf,vllm --prompts held_out.jsonl
      steerkit certify --artefact steering.safetensors --prompts held_out.jsonl --compiled --json
    """
    from steerkit.datasets import read_prompts
    from steerkit.errors import MethodError, PromptError
    from steerkit.files import write_text
    from steerkit.prompts import Prompt
    from steerkit.vllm.certificate import certify

    if sorted(inputs.read_names(engines)) != ["hf", "vllm"]:
        raise MethodError(f"a certificate compares the engines hf,vllm; got '{engines}'")
    if out:
        check_free([Path(out)], force=force)
    asked = [Prompt.of(p) for p in [*prompt, *(read_prompts(Path(prompts)) if prompts else [])]]
    if not asked:
        raise PromptError("nothing to answer; give --prompt TEXT or --prompts FILE")
    asked = inputs.rendered(asked, template)
    name = model or inputs.recorded_model(inputs.read_steering(artefact))
    say(f"answering {len(asked)} prompts on both engines")
    found = certify(
        name,
        artefact,
        asked,
        max_new_tokens=max_new_tokens,
        compiled=compiled,
        force=transfer,
        tolerance=tolerance,
    )
    if out:
        write_text(Path(out), json.dumps(found.to_json(), indent=1) + "\n")
    return Answer(found.to_json(), certificate_view(found), OK if found.holds else NOTHING_FOUND)


def certificate_view(found: "Certificate") -> RenderableType:
    """The sites, the totals, the verdict."""
    rows = [
        (
            site.site,
            f"{site.tokens}",
            f"{site.matched} of {site.moved}" + (f" (+{site.extra})" if site.extra else ""),
            _decoded(site),
            f"{site.difference:.1e}",
            f"{site.without:.1e}",
        )
        for site in found.sites
    ]
    made = table(
        f"{'; '.join(found.steering)} on {found.model}",
        "site", "tokens", "steered in both", "decode steps", "difference", "unsteered",
        rows=rows,
    )  # fmt: skip
    notes = Text()
    notes.append(
        f"logits differ by at most {found.logits:.1e} (without steering {found.logits_without:.1e})"
        f"\ngreedy tokens equal: {found.equal:.1%} of {found.tokens} (without steering "
        f"{found.equal_without:.1%})\n"
    )
    notes.append(found.summary(), style="bold green" if found.holds else "bold red")
    return stack(made, notes)


def _decoded(site: "SiteParity") -> str:
    """How many decode steps both engines steered; and how many should be, where not all are."""
    steered = f"{site.decoded_matched} of {site.decoded}"
    wanted = f" (wanted: {site.decoded_moved})" if site.decoded_moved != site.decoded else ""
    return steered + wanted

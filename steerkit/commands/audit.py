"""`steerkit audit`: a steering file, or a suite of questions, in; a report out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from steerkit.commands import inputs
from steerkit.commands import options as o
from steerkit.commands import suite as suites
from steerkit.commands.console import Answer, say, stack, table
from steerkit.commands.outputs import staged

if TYPE_CHECKING:
    from steerkit.audits import Report

FILES = ("report.html", "report.json", "report.md", "items.jsonl")


def command(
    steering: Annotated[
        Path | None,
        typer.Argument(help="What search wrote (.safetensors); may be left out with --suite."),
    ] = None,
    contrast: o.ContrastFile = "",
    model: o.RecordedModel = "",
    steering_file: Annotated[
        Path | None, typer.Option("--steering", help="The same file, by option.")
    ] = None,
    suite: Annotated[
        str,
        typer.Option(
            help="Ask a suite of questions instead: behaviour, likelihood, steering, two_models, "
            "standard, or examinations by name, comma-separated. [cyan]list[/] shows all.",
        ),
    ] = "",
    against: Annotated[
        str,
        typer.Option(help="With --suite: another model of the same tokenizer to compare with."),
    ] = "",
    data: Annotated[
        list[str],
        typer.Option(
            help="With --suite, repeatable: a folder of prompts named by role (refusal.jsonl, "
            "topic.jsonl, ...); SET=SOURCE, a public set in all roles that it plays; or "
            "ROLE=FILE, ROLE=SET:SOURCE, ROLE.SIDE=.... A source is a path or a hub name. "
            "Shipped organisms bring their own."
        ),
    ] = [],  # noqa: B006 (typer copies it)
    aim: o.Aim = "reduce",
    target: Annotated[
        str, typer.Option(help="The check that the verdict is about: refusal, projection, ...")
    ] = "refusal",
    checks: Annotated[
        str, typer.Option(help="Checks to make, comma-separated. Default: all that apply.")
    ] = "",
    system_prompt: o.SystemPrompt = "",
    strength: Annotated[str, typer.Option(help="Replace the strength.")] = "",
    part: o.Part = "audit",
    limit: o.Limit = 0,
    template: o.Template = "auto",
    max_new_tokens: o.MaxNew = 48,
    out: o.Out = Path("steerkit-audit"),
    device: o.Device = "",
    dtype: o.Dtype = "",
    transfer: o.Transfer = False,
    seed: o.Seed = 0,
    force: o.Force = False,
) -> Answer:
    """Compare the steered model with the plain one and with prompting, and write a report.

    Or ask named questions of a model (--suite), of it steered and against another one:

    \b
      behaviour   what it refuses, answers, deflects and leans to, for whom
      likelihood  which of two texts it finds likelier: stereotypes, right answers
      steering    what steering changed, what else it does, what it left in place
      two_models  what differs from another model: answers, tokens, states
      standard    all of these, decoding, and what its states hold and route

    \b
    Examples:
      steerkit audit steering.safetensors -c requests.jsonl
      steerkit audit steering.safetensors -c unseen.jsonl --part all -o audit
      steerkit audit steering.safetensors -c pairs.csv --target projection --json
      steerkit audit --suite list
      steerkit audit -m organism:compromised --against organism:aligned --suite standard
      steerkit audit -m MODEL --suite behaviour --data xstest=xstest_prompts.csv \\
        --data refusal.positive=advbench:advbench.csv --data groups=groups.jsonl
    """
    from steerkit.errors import MethodError

    if steering and steering_file and steering != steering_file:
        raise MethodError(
            f"two steering files are given, {steering} and --steering {steering_file}; give one"
        )
    steering = steering or steering_file
    if suite == "list":
        return suites.listed()
    if suite:
        return suites.run(
            suite,
            steering=steering,
            strength=strength,
            model=model,
            against=against,
            data=data,
            max_new_tokens=max_new_tokens,
            out=out,
            device=device,
            dtype=dtype,
            transfer=transfer,
            seed=seed,
            force=force,
        )
    if steering is None or not contrast:
        lacking = "a steering file" if steering is None else "--contrast"
        raise MethodError(
            f"an audit of steering needs {lacking}; or ask questions of a model: --suite standard"
        )
    if against or data:
        option = "--against" if against else "--data"
        raise MethodError(f"{option} goes with --suite, which asks questions of models; add one")
    from steerkit.audits import audit
    from steerkit.pipeline import part_of

    with staged(out, FILES, force=force) as folder:
        whole = inputs.read_contrast(contrast, template)
        prompts = part_of(whole, part, seed=seed, limit=limit)
        train = None if part == "all" else part_of(whole, "fit", seed=seed, limit=limit)
        operators = inputs.read_steering(steering, strength)
        loaded = inputs.open_model(model or inputs.recorded_model(operators), device, dtype)
        steered = inputs.steer(loaded, operators, transfer=transfer)
        say(f"auditing on {prompts}")
        report = audit(
            loaded,
            steered,
            prompts,
            target=target,
            aim="less" if inputs.read_aim(aim) == "reduce" else "more",
            checks=inputs.read_names(checks) or None,
            system_prompt=system_prompt or None,
            train=train,
            directions=inputs.first_direction(operators),
            max_new_tokens=max_new_tokens,
            seed=seed,
        )
        for name in FILES:
            report.write(folder / name)
    written = [str(out / name) for name in FILES]
    return Answer({**report.to_json(), "files": written}, report_view(report, written))


def report_view(report: "Report", written: list[str]) -> RenderableType:
    """The verdict and a short table; every check is in the report."""
    from steerkit.audits.verdict import interval

    arms = [arm.name for arm in report.arms]
    value = {(s.check, s.side, s.arm): s for s in report.scores}
    keys = dict.fromkeys((s.check, s.side) for s in report.scores)
    rows = [
        (
            f"{check}, {side}",
            *(
                interval(value[check, side, arm].estimate, value[check, side, arm].unit)
                if (check, side, arm) in value
                else "–"
                for arm in arms
            ),
        )
        for check, side in keys
        if check in (report.target, "correct", "kl")
    ]
    made = table(report.title, "check, prompts", *arms, rows=rows)
    return stack(
        made,
        Text(report.verdict, style="bold"),
        Text(f"written: {', '.join(written)}", style="dim"),
    )

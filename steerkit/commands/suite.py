"""`steerkit audit --suite`: an auditor's questions of a model, in one report."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from steerkit.commands import inputs
from steerkit.commands.console import Answer, say, stack, table
from steerkit.commands.outputs import check_free

if TYPE_CHECKING:
    from steerkit.suites import SuiteReport

FILES = ("report.html", "report.md", "report.json", "items.jsonl")


def run(
    suite: str,
    *,
    steering: Path | None,
    strength: str,
    model: str,
    against: str,
    data: Path | None,
    max_new_tokens: int,
    out: Path,
    device: str,
    dtype: str,
    transfer: bool,
    seed: int,
    force: bool,
) -> Answer:
    """Ask a suite's questions; what was answered before an interruption is kept in `findings/`."""
    from steerkit.suites import examine
    from steerkit.suites.registry import SUITES

    if not (out / "findings").is_dir():
        check_free([out / name for name in FILES], force=force)
    operators = inputs.read_steering(steering, strength) if steering else ()
    name = model or (inputs.recorded_model(operators) if operators else "organism:aligned")
    loaded = inputs.open_model(name, device, dtype)
    other = inputs.open_model(against, device, dtype) if against else None
    steered = inputs.steer(loaded, operators, transfer=transfer) if operators else None
    say(f"asking the suite '{suite}' of {loaded.info.name}")
    report = examine(
        loaded,
        suite if suite in SUITES or "," not in suite else inputs.read_names(suite),
        material=data,
        steering=steered,
        against=other,
        max_new_tokens=max_new_tokens,
        seed=seed,
        out=out,
    )
    written = [str(out / file) for file in FILES if (out / file).is_file()]
    return Answer({**report.to_json(), "files": written}, view(report, written))


def view(report: "SuiteReport", written: list[str]) -> RenderableType:
    """A row a question."""
    rows = [
        (e.question, report.findings[e.name].answer, report.findings[e.name].sentence)
        for e in report.asked
        if e.name in report.findings
    ]
    left = [f"not measured: {name} ({why})" for name, why in report.not_measured.items()]
    return stack(
        table(report.title, "question", "answer", "numbers", rows=rows),
        Text("\n".join([*left, f"written: {', '.join(written)}"]), style="dim"),
    )

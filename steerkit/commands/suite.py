"""`steerkit audit --suite`: an auditor's questions of a model, in one report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from steerkit.commands import inputs
from steerkit.commands.console import Answer, say, stack, table
from steerkit.commands.outputs import check_free

if TYPE_CHECKING:
    from steerkit.suites import Material, SuiteReport

FILES = ("report.html", "report.md", "report.json", "items.jsonl")


def run(
    suite: str,
    *,
    steering: Path | None,
    strength: str,
    model: str,
    against: str,
    data: Sequence[str],
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

    prompts = read_material(data)
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
        material=prompts,
        steering=steered,
        against=other,
        max_new_tokens=max_new_tokens,
        seed=seed,
        out=out,
    )
    written = [str(out / file) for file in FILES if (out / file).is_file()]
    return Answer({**report.to_json(), "files": written}, view(report, written))


def read_material(data: Sequence[str]) -> "Material | None":
    """Folders, and `KEY=SOURCE` by role or by public set; None for nothing.

    Raises:
        PromptError: what cannot be read, a key that is given twice, a role that two have.
    """
    from steerkit.errors import PromptError
    from steerkit.suites import Material

    by_key: dict[str, str] = {}
    found: list[Material] = []
    for given in data:
        key, equals, source = given.partition("=")
        if not equals or Path(given).is_dir():
            found.append(Material.read(given))
        elif key == "name":
            raise PromptError(f"'{given}' names no role and no public set; see --suite list")
        elif key in by_key:
            raise PromptError(f"--data {key}= is given twice: {by_key[key]} and {source}")
        else:
            by_key[key] = source
    if by_key:
        found.append(Material.of(**by_key))
    if not found:
        return None
    whole = found[0]
    for other in found[1:]:
        whole = whole.joined(other)
    return whole


def listed() -> Answer:
    """Every suite, examination, role and public set there is."""
    from steerkit.suites import SETS, SUITES
    from steerkit.suites.material import ROLES
    from steerkit.suites.registry import EXAMINATIONS

    asked = [EXAMINATIONS[name] for name in EXAMINATIONS.names()]
    either = {e.name: " or " if e.either else " and " for e in asked}
    needs = {
        e.name: ", ".join(filter(None, (*e.needs, either[e.name].join(e.arms)))) for e in asked
    }
    found = {
        "suites": {name: list(names) for name, names in SUITES.items()},
        "examinations": {
            e.name: {
                "question": e.question,
                "needs": list(e.needs),
                "arms": list(e.arms),
                "source": e.source,
            }
            for e in asked
        },
        "roles": {role: what for role, (_, what) in ROLES.items()},
        "public_sets": {
            name: {"roles": list(s.roles), "without": s.without, "home": s.home}
            for name, s in SETS.items()
        },
    }
    return Answer(
        found,
        stack(
            _list("Suites (--suite)", {n: (", ".join(asks),) for n, asks in SUITES.items()}),
            _list(
                "Examinations (--suite, comma-separated)",
                {e.name: (e.question, f"needs {needs[e.name]}; {e.source}") for e in asked},
            ),
            _list("Roles of prompts (--data)", {r: (what,) for r, (_, what) in ROLES.items()}),
            _list(
                "Public sets (--data SET=SOURCE)",
                {
                    name: (
                        f"plays {', '.join(s.roles)}",
                        f"does not measure {s.without}",
                        f"from {s.home}",
                    )
                    for name, s in SETS.items()
                },
            ),
        ),
    )


def _list(title: str, entries: Mapping[str, Sequence[str]]) -> RenderableType:
    """Names, and lines about each, set in as far as the longest name."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for name, (first, *more) in entries.items():
        grid.add_row(name, first)
        for line in more:
            grid.add_row("", Text(line, style="dim"))
    return stack(Text(f"\n{title}", style="bold underline"), grid)


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

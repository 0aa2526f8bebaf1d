"""The main job as a library function, shared by the command line and notebooks.

Capture, extract, search, steer, audit: each step reads what the one before it made, and each
sees prompts of its own, so that no number is scored on what it was fitted or chosen on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from steerkit.pipeline.parts import Parts
from steerkit.registry import suggest

if TYPE_CHECKING:
    from steerkit.activations import Activations
    from steerkit.audits import Report
    from steerkit.direction import Directions
    from steerkit.prompts import Contrast
    from steerkit.protocols import Model
    from steerkit.searches import Objective, Sweep

FILES = (
    "activations.safetensors",
    "directions.safetensors",
    "sweep.json",
    "direction.safetensors",
    "steering.safetensors",
    "items.jsonl",
    "report.html",
    "report.json",
    "report.md",
)
"""What a finished job writes; without a find, only the first three."""
FOLDS = 5
"""Of the directions' held-out scores, where there are prompts for as many."""


@dataclass(frozen=True)
class Settings:
    """What the job tries. Names are those of the verbs' own arguments.

    Attributes:
        methods: extractors, all fitted at every site.
        streams: where activations are captured.
        layers: counted from 0; None for all.
        pooling: what becomes a row: `last`, `mean_prompt`, a token index.
        operators: interventions that the search tries.
        positions: position rules that it tries.
        references: reference points, for operators that have one.
        strengths: None for each operator's own.
        objective: what the search moves: `refusal`, `unanswered`, `log_odds`, `projection`.
        aim: `reduce` it on positive prompts, or `induce` it on negative ones.
        max_kl: the guard, in nats per token on the other side's prompts.
        n_permutations: permuted labellings in the null of each direction's AUC.
        n_random: random directions in each null.
        null_budget: measured rows that random searches may cost; see `search`.
        max_new_tokens: length of answers.
        system_prompt: the same aim in words, for the prompting baseline.
        seed: every random choice follows from it.
    """

    methods: tuple[str, ...] = ("mean_difference", "pca", "logistic", "lda")
    streams: tuple[str, ...] = ("resid_post",)
    layers: tuple[int, ...] | None = None
    pooling: str | int = "last"
    operators: tuple[str, ...] = ("ablate",)
    positions: tuple[str, ...] = ("all", "last_prompt")
    references: tuple[str, ...] = ("zero", "negative_mean")
    strengths: tuple[float, ...] | None = None
    objective: "str | Objective" = "refusal"
    aim: Literal["reduce", "induce"] = "reduce"
    max_kl: float = 0.1
    n_permutations: int = 199
    n_random: int = 199
    null_budget: int = 6_000
    max_new_tokens: int = 32
    system_prompt: str | None = None
    seed: int = 0

    def check(self) -> None:
        """Refuse names and numbers that no step knows, before any step has run.

        Raises:
            MethodError: an unknown method, objective or aim, a guard that is not positive.
            InterventionError: an unknown operator, position rule or reference.
            SiteError: an unknown stream.
        """
        from steerkit.batch import Positions
        from steerkit.errors import MethodError
        from steerkit.extraction import METHODS
        from steerkit.interventions import OPERATORS
        from steerkit.interventions.level import check_level
        from steerkit.searches.guards import check_guard
        from steerkit.searches.naming import NAMES
        from steerkit.site import Site

        for method in self.methods:
            METHODS[method]
        for operator in self.operators:
            OPERATORS[operator]
        for stream in self.streams:
            Site(0, stream)  # type: ignore[arg-type]
        for rule in self.positions:
            Positions.of(rule)
        for reference in self.references:
            check_level("reference", reference)
        for kind, name, known in (
            ("objective", self.objective, NAMES),
            ("aim", self.aim, ("reduce", "induce")),
        ):
            if isinstance(name, str) and name not in known:
                raise MethodError(f"no {kind} named '{name}'; {suggest(name, known)}")
        check_guard("kl", self.max_kl)


@dataclass(frozen=True, eq=False)
class Outcome:
    """Everything the job made. `steered` and `report` are None where nothing met the guard."""

    activations: "Activations"
    directions: "Directions"
    sweep: "Sweep"
    steered: "Model | None" = None
    report: "Report | None" = None
    settings: Settings = field(default_factory=Settings)

    @property
    def found(self) -> bool:
        """Whether the search found anything within the guard."""
        return self.steered is not None

    def write(self, folder: str | Path) -> tuple[Path, ...]:
        """Write every artefact and report into a folder; the paths, in the order of `FILES`."""
        import json

        from steerkit.files import write_text
        from steerkit.interventions import save_steering

        place = Path(folder)
        written = [
            self.activations.save(place / FILES[0]),
            self.directions.save(place / FILES[1]),
            write_text(place / FILES[2], json.dumps(self.sweep.to_json(), indent=1)),
        ]
        if self.report is not None:
            best = self.sweep.best
            written += [
                best.direction.save(place / FILES[3]),
                save_steering(place / FILES[4], best.intervention),
                *(self.report.write(place / name) for name in FILES[5:]),
            ]
        return tuple(written)


def run(
    model: "Model",
    parts: Parts,
    settings: Settings | None = None,
    *,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Capture, extract, search, steer and audit.

    Args:
        model: any model behind the protocol.
        parts: the prompts of each step.
        settings: what to try.
        progress: one bar a step, to stderr.
        say: told in a sentence what is being done.

    Raises:
        SteerkitError: of the kind of the step that could not be done.
    """
    from steerkit.captures import capture
    from steerkit.extraction import extract
    from steerkit.pipeline.sections import sections
    from steerkit.searches import search

    s = settings or Settings()
    s.check()
    say(f"capturing {', '.join(s.streams)} of {model.info.name} on {parts.fit}")
    activations = capture(
        model,
        parts.fit,
        streams=s.streams,
        layers=s.layers,
        positions=s.pooling,
        progress=progress,
    )
    say(f"fitting {', '.join(s.methods)} at {len(activations.sites)} sites")
    directions = extract(
        activations,
        s.methods,
        model=model,
        n_folds=min(FOLDS, groups_a_side(parts.fit)),
        n_permutations=s.n_permutations,
        n_random=s.n_random,
        seed=s.seed,
        progress=progress,
    )
    say(f"searching site, {', '.join(s.operators)}, position and strength on {parts.search}")
    sweep = search(
        model,
        directions,
        parts.search,
        intervene=s.operators,
        strengths=s.strengths,
        positions=s.positions,
        references=s.references,
        objective=s.objective,
        aim=s.aim,
        guard_max=s.max_kl,
        n_random=s.n_random,
        null_budget=s.null_budget,
        max_new_tokens=min(s.max_new_tokens, 16),
        seed=s.seed,
        progress=progress,
    )
    if not sweep.found:
        return Outcome(activations, directions, sweep, settings=s)
    say(f"auditing {sweep.best}")
    steered = model.with_(sweep.best.intervention)
    told = sections(parts, activations, directions, sweep)
    report = audit_choice(model, steered, parts, sweep, s, sections=told, progress=progress)
    return Outcome(activations, directions, sweep, steered, report, s)


def audit_choice(
    model: "Model",
    steered: "Model",
    parts: Parts,
    sweep: "Sweep",
    settings: Settings,
    *,
    progress: bool = True,
    sections: Sequence[Any] = (),
) -> "Report":
    """Audit what a search chose, on prompts that neither fitting nor search saw."""
    from steerkit.audits import audit

    return audit(
        model,
        steered,
        parts.audit,
        target=target_of(settings.objective),
        aim="less" if settings.aim == "reduce" else "more",
        system_prompt=settings.system_prompt,
        train=parts.fit,
        directions=sweep.best.direction,
        sweep=sweep,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
        sections=sections,
        progress=progress,
    )


def target_of(objective: "str | Objective") -> str:
    """The audit's check that belongs to a search objective."""
    return "refusal" if objective in ("refusal", "unanswered") else "projection"


def groups_a_side(contrast: "Contrast") -> int:
    """Groups of the side that has fewer."""
    n = len(contrast.positive)
    return min(len(set(contrast.groups[:n])), len(set(contrast.groups[n:])))

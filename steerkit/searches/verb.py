"""The verb: try every candidate on held-out prompts, choose under a guard, confirm on the rest."""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from steerkit.batch import Positions
from steerkit.direction import Direction
from steerkit.errors import MethodError, PromptError
from steerkit.prompts import Contrast, sketch
from steerkit.protocols import Model
from steerkit.registry import suggest
from steerkit.scoring import with_own_answers
from steerkit.searches.candidates import AIMS, Aim, Factory, every_candidate
from steerkit.searches.checkpoint import Checkpoint
from steerkit.searches.final import confirm
from steerkit.searches.guarding import fewer, guards_on, read_limits
from steerkit.searches.measure import measure_plain, sides, sign, spread
from steerkit.searches.naming import make_objective
from steerkit.searches.nulls import SHAPES
from steerkit.searches.objectives import Objective
from steerkit.searches.rows import Final
from steerkit.searches.searched import affordable, random_searches
from steerkit.searches.selection import measure_candidates, row_of
from steerkit.searches.states import states
from steerkit.searches.sweep import Sweep
from steerkit.statistics import cluster_mean

SHARED = 0.05
"""The share of a direction's prompts that may occur among held-out ones: a few chance repeats."""


def search(
    model: Model,
    directions: Direction | Sequence[Direction],
    held_out: Contrast,
    *,
    intervene: "str | Factory | Sequence[str | Factory]" = "ablate",
    strengths: Sequence[float] | None = None,
    positions: Sequence[Positions | str] = ("all", "last_prompt"),
    references: Sequence[str] = ("zero", "negative_mean"),
    objective: str | Objective = "refusal",
    aim: Aim = "reduce",
    guard: str | Sequence[str] | Mapping[str, float] | None = "kl",
    guard_max: float | None = None,
    transfer: Contrast | Mapping[str, Contrast] | None = None,
    n_random: int = 199,
    null_prompts: int = 16,
    null_budget: int = 6_000,
    fraction: float = 0.5,
    max_new_tokens: int = 16,
    token_budget: int = 16_384,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Sweep:
    """Find direction, operator, position rule and strength, and what they do to unseen prompts.

    The held-out contrast is split by group into a selection and a confirmation part. Every
    candidate is scored on the same selection prompts; of those that meet the guard the one
    with the largest effect is chosen; the confirmation part gives the final estimate, its
    interval and its nulls. Random directions also pass through the whole search, and the
    best effect is compared with theirs (maximum against maxima).

    Args:
        model: plain, or steered by `with_` (candidates then come on top).
        directions: one or several at each site, taken on this model.
        held_out: prompts that had no part in making the directions.
        intervene: operators to try: classes, registered names, or factories
            `(direction, positions=, strength=) -> intervention`, or several of these.
        strengths: for every operator; by default 1, and five additions of the aim's sign.
        positions: position rules to try.
        references: reference points to try, for operators that have one.
        objective: `refusal`, `unanswered` (not the prompt's own answer), `log_odds`,
            `label_accuracy`, `projection`, a check of the audit that reads answers (such as
            `compliance`), or an `Objective` (`Judged(judge)` for any callable).
        aim: `reduce` the objective on the positive prompts, or `induce` it on the negative.
        guard: what must hold on the other side's prompts: `kl` (KL(plain || steered) per token
            over the plain model's own answers), `perplexity` (loss of their log-probability
            per token), `accuracy` (share of right answers lost); several, or limits by name;
            None for no guard.
        guard_max: limit of a single guard; by default 0.1 nats a token, or 0.02 of answers.
        transfer: further contrasts, such as other templates, on which the choice is measured
            once at the end.
        n_random: random directions of each shape at the chosen candidate; 0 for no nulls.
        null_prompts: prompts on which random directions are measured, at most.
        null_budget: measured rows (direction x candidate x prompt) that random searches may
            cost: with a smaller one, fewer random searches (down to 19) on fewer prompts
            (down to 4); 0 for none.
            They are held to the guard like the real one, on as many prompts.
        fraction: share of the held-out groups that selection uses.
        max_new_tokens: length of generated answers.
        token_budget: padded tokens a forward pass.
        checkpoint: a file that keeps what was measured; the same search goes on from it.
        seed: every random choice follows from it.
        progress: one bar, to stderr.

    Raises:
        MethodError: an unknown objective, guard or aim.
        InterventionError: an unknown operator or rule, strengths not finite.
        DirectionError: no directions, or directions of another model.
        PromptError: too few groups to split, or the prompts that a direction was fitted on.
        OutputError: a checkpoint of another search.
    """
    if aim not in AIMS:
        raise MethodError(f"no aim named '{aim}'; {suggest(str(aim), AIMS)}")
    limits = read_limits(guard, guard_max)
    further = {transfer.name: transfer} if isinstance(transfer, Contrast) else dict(transfer or {})
    listed = [directions] if isinstance(directions, Direction) else list(directions)
    for direction in listed:
        direction.check(model.info)
    _check_unseen(listed, held_out)
    tried = every_candidate(
        listed, intervene, aim=aim, strengths=strengths, positions=positions, references=references
    )
    interventions = [c.intervention for c in tried]
    selection, confirmation = held_out.split(fraction, seed=seed)
    budget: dict[str, Any] = {"max_new_tokens": max_new_tokens, "token_budget": token_budget}
    target = make_objective(objective, model, listed, held_out, **budget)
    task, other = sides(selection, aim)
    draws, few = affordable(len(tried), n_random, null_prompts, null_budget, len(task.prompts))
    kept = Checkpoint(
        checkpoint,
        {
            "model": [model.info.fingerprint, getattr(model, "steering", ())],
            "prompts": [held_out.sha256, fraction],
            "candidates": [[str(c), fingerprint_of(c.direction)] for c in tried],
            "objective": [target.name, str(target), max_new_tokens],
            "guards": limits,
            "random directions": [draws, few, seed],
        },
    )

    from tqdm.auto import tqdm

    steps = len(tried) * (1 + draws) + 1 + len(SHAPES) * n_random
    with tqdm(total=steps, desc="search", disable=not progress) as bar:
        plain = measure_plain(model, target, task.prompts)
        said = model.generate(task.prompts, **budget)
        met = states(model, with_own_answers(said), [c.direction.site for c in tried])
        guards = guards_on(model, other, limits, **budget)
        values, damages = measure_candidates(
            model, interventions, target, task, guards, seed=seed, kept=kept, advance=bar.update
        )
        rows = tuple(
            row_of(c, i, v, d, limits, plain.values[0], task, met, aim, target.unit)
            for c, i, v, d in zip(tried, interventions, values, damages, strict=True)
        )
        sweep = Sweep(
            rows=rows,
            aim=aim,
            objective=target.name,
            unit=target.unit,
            plain=cluster_mean(plain.values[0], task.groups, seed=seed, unit=target.unit),
            limits=limits,
            searched=None,
            final=None,
            provenance=_provenance(model, held_out, selection, confirmation, seed),
        )
        if not sweep.found:
            return sweep
        searched = None
        if draws:
            some = spread(len(task.prompts), few, seed=seed)
            effects = sign(aim) * (values - plain.values)[:, some].mean(1)
            searched = random_searches(
                model,
                tried,
                rows,
                target,
                task.take(some),
                sign(aim) * plain.values[0, some],
                selection,
                met,
                aim=aim,
                guards=fewer(guards, few, seed=seed),
                observed=max(float(e) for e, r in zip(effects, rows, strict=True) if r.allowed),
                n=draws,
                seed=seed + 10,
                kept=kept,
                advance=bar.update,
            )
        final: Final = confirm(
            model,
            tried[rows.index(sweep.best)],
            confirmation,
            target,
            aim=aim,
            limits=limits,
            transfer=further,
            n_random=n_random,
            null_prompts=null_prompts,
            seed=seed,
            advance=bar.update,
            **budget,
        )
    return replace(sweep, searched=searched, final=final)


def _check_unseen(directions: Sequence[Direction], held_out: Contrast) -> None:
    """Refuse prompts that a direction was fitted on: the same contrast, or a part of it."""
    here = set(sketch(held_out.prompts, None))
    for direction in directions:
        known = direction.provenance.get("fitted_on") or ()
        seen = sum(one in here for one in known)
        same = direction.provenance.get("contrast_sha256") == held_out.sha256
        if same or seen > SHARED * len(known):
            which = (
                "these very prompts"
                if same or seen == len(known)
                else (f"prompts of which {seen} in {len(known)} are among these")
            )
            raise PromptError(
                f"{direction} was fitted on {which} ({held_out}), so a search on them would "
                "flatter it; keep some back: `train, held_out = contrast.split(0.8)`, fit on "
                "train, search on held_out"
            )


def fingerprint_of(direction: Direction) -> str:
    """Of the vector and what is known along it."""
    known = f"{direction.scale} {direction.positive_mean} {direction.negative_mean}"
    return hashlib.sha256(direction.unit.numpy().tobytes() + known.encode()).hexdigest()[:16]


def _provenance(
    model: Model, held_out: Contrast, selection: Contrast, confirmation: Contrast, seed: int
) -> dict[str, Any]:
    import torch

    from steerkit import __version__

    return {
        "model": model.info.name,
        "fingerprint": model.info.fingerprint,
        "held_out": held_out.sha256,
        "selection": [len(selection.positive), len(selection.negative)],
        "confirmation": [len(confirmation.positive), len(confirmation.negative)],
        "seed": seed,
        "steerkit": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }

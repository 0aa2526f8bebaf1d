"""The verb `audit`: run every arm on held-out prompts, score, compare, report."""

import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit.audits.arms import (
    BASELINES,
    Aim,
    Arm,
    ArmInfo,
    PromptTransform,
    describe,
    other_arms,
    prompted_arms,
)
from steerkit.audits.checks import ItemCheck, chosen
from steerkit.audits.evidence import Item, includes
from steerkit.audits.report import Report, judge_check, judged
from steerkit.audits.section import Section
from steerkit.errors import MethodError, PromptError
from steerkit.prompts import Contrast, Prompt
from steerkit.refusals import is_refusal

if TYPE_CHECKING:
    from steerkit.direction import Direction
    from steerkit.protocols import Completion, Model

PACKAGES = ("torch", "transformers", "numpy", "steerkit")


def audit(
    plain: "Model",
    steered: "Model",
    held_out: Contrast,
    *,
    answers: Sequence[str | None] | None = None,
    checks: Sequence[str | ItemCheck] | None = None,
    target: str = "refusal",
    aim: Aim = "less",
    baselines: Sequence[str] = BASELINES,
    system_prompt: str | None = None,
    shots: Sequence[tuple[str, str]] | None = None,
    train: Contrast | None = None,
    arms: "Mapping[str, Model | PromptTransform] | None" = None,
    said: "Mapping[str, Sequence[Completion]] | None" = None,
    directions: "Direction | Sequence[Direction] | None" = None,
    sweep: Any = None,
    texts: Sequence[str] = (),
    judge: Callable[[Item], float] | None = None,
    matcher: Callable[[str], float] = is_refusal,
    scorer: Callable[[str, str], float] = includes,
    max_new_tokens: int = 48,
    n_resamples: int = 2000,
    token_budget: int = 4096,
    seed: int = 0,
    out: str | Path | None = None,
    title: str | None = None,
    sections: Sequence[Section] = (),
    progress: bool = True,
) -> Report:
    """Compare a steered model with the plain one, and with prompting, on held-out prompts.

    Every arm answers every prompt greedily. Each check gives one value a prompt; rates carry
    group-bootstrap intervals, differences against the plain model are paired, tested by
    exchanging plain and arm within groups, and corrected over the whole report: half of the
    5% goes to the target, named beforehand, and half to everything else by Holm's method.
    Numbers are only as good as the prompts: give ones that neither fitting nor search saw.

    Args:
        plain: the model as it is.
        steered: the view to audit (or another model with the same tokens).
        held_out: positives show the concept (harmful requests), negatives do not.
        answers: the right answer of each of `held_out.prompts`, or None; a prompt's own
            `answer` by default.
        checks: names or checks; all that apply by default.
        target: the check that the verdict is about.
        aim: whether steering is to give `less` of the target on positives, or `more` on
            negatives.
        baselines: prompting baselines on the plain model: `system`, `few_shot`.
        system_prompt: the aim in words; has a default for refusal.
        shots: worked examples (prompt, answer) of the aim.
        train: the contrast used for fitting, from which worked examples are drawn.
        arms: further arms, such as a random direction: a model, or a function on prompts.
        said: answers that arms gave already, by arm: `plain` and `steered`, greedy, to
            `held_out.prompts` in order and of this length. They are not asked again.
        directions: the direction steered by (the first, or `.best`, is projected on).
        sweep: the search that chose it; gives the direction where `directions` is not given.
        texts: raw texts whose perplexity is taken under the plain and the steered model.
        judge: an item's value in [0, 1]; becomes the check `judge`.
        matcher: what counts as a refusal.
        scorer: (output, reference) -> how right, in [0, 1].
        max_new_tokens: length of answers.
        n_resamples: bootstrap resamples of each interval.
        token_budget: padded tokens a forward pass.
        seed: of resampling.
        out: folder to write `items.jsonl` and `report.json` to.
        title: heading of the report.
        sections: further parts of the report.
        progress: one bar on stderr.

    Raises:
        MethodError: an unknown check, baseline or aim, or a target that is not among the checks.
        PromptError: reference answers that do not match the prompts, or prompts too long.
    """
    from tqdm.auto import tqdm

    taken = (*chosen(checks), *judge_check(judge))
    names = [c.name for c in taken]
    if target not in names:
        chosen([target])  # an unknown name says what was meant
        raise MethodError(
            f"the target '{target}' is not among the checks {', '.join(names)}; add it, or "
            "choose another target"
        )
    if aim not in ("less", "more"):
        raise MethodError(f"the aim is 'less' or 'more' of the target; got '{aim}'")
    references = _references(held_out, answers)
    direction = _direction(directions, sweep)
    prompted, missing = prompted_arms(
        plain,
        baselines,
        aim=aim,
        target=target,
        system_prompt=system_prompt,
        shots=shots,
        train=train,
        held_out=held_out,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    first = Arm(ArmInfo("plain", "plain", describe(plain)), plain)
    second = Arm(ArmInfo("steered", "steered", describe(steered)), steered)
    compared = [first, second, *prompted]
    compared += other_arms(plain, arms or {}, [a.info.name for a in compared])
    need = {c.needs for c in taken}
    bar = tqdm(total=4 * len(compared), desc="audit", unit="step", disable=not progress)
    with bar:
        gathered, left_out = _gather(
            compared,
            held_out,
            references,
            said or {},
            direction=direction if "projection" in need else None,
            texts=texts,
            need=need,
            max_new_tokens=max_new_tokens,
            token_budget=token_budget,
            seed=seed,
            tick=lambda words: (bar.set_postfix_str(words), bar.update())[1],
        )
    kept = {i.arm for i in gathered}
    reasons = {
        "correct": "no reference answers; give prompts an answer, or pass answers=",
        "projection": "no direction; pass directions= or sweep=",
    }
    report = Report(
        title=title or f"Audit of {plain.info.name}: {held_out.name}",
        concept=held_out.name,
        target=target,
        target_side="positive" if aim == "less" else "negative",
        arms=tuple(a.info for a in compared if a.info.name in kept),
        not_measured={**missing, **left_out, **{k: v for k, v in reasons.items() if k in names}},
        provenance=_provenance(
            plain, steered, held_out, direction, sweep, train, seed, n_resamples, max_new_tokens
        ),
        sections=tuple(sections),
    )
    report = judged(
        report,
        gathered,
        taken,
        matcher=matcher,
        scorer=scorer,
        seed=seed,
        n_resamples=n_resamples,
    )
    if out is not None:
        report.write(Path(out) / "items.jsonl")
        report.write(Path(out) / "report.json")
    return report


def _gather(
    arms: Sequence[Arm],
    held_out: Contrast,
    references: Sequence[str],
    said: "Mapping[str, Sequence[Completion]]",
    *,
    direction: "Direction | None",
    texts: Sequence[str],
    need: set[str],
    max_new_tokens: int,
    token_budget: int,
    seed: int,
    tick: Callable[[str], object],
) -> tuple[list[Item], dict[str, str]]:
    """Items of every arm, and why an arm or a measurement was left out."""
    from steerkit.audits import measure

    prompts = held_out.prompts
    negative = [i for i, label in enumerate(held_out.labels) if not label]
    base: list[Completion] = []
    items: list[Item] = []
    missing: dict[str, str] = {}
    for arm in arms:
        name = arm.info.name
        try:
            tick(f"{name}: answers")
            if not said:
                said = _together(arms[:2], prompts, max_new_tokens, token_budget)
            own = list(said.get(name, ())) or measure.answers(
                arm, prompts, max_new_tokens=max_new_tokens, seed=seed, token_budget=token_budget
            )
            base = base or own
            parts = []
            apart = measure.comparable(arms[0].model, arm.model)
            if apart:
                missing[f"KL of {name}"] = apart
            tick(f"{name}: perplexity")
            if need & {"kl", "nll", "own_nll"} and not apart:
                parts.append(measure.own_surprise(arms[0], base, own, token_budget))
            tick(f"{name}: KL")
            if need & {"kl", "nll"} and not apart:
                parts.append(
                    measure.against_itself(arm, own, negative, token_budget)
                    if arm is arms[0]
                    else measure.divergence(arms[0], arm, base, own, negative, token_budget)
                )
            tick(f"{name}: projection")
            if direction is not None:
                parts.append(measure.projections(arm, prompts, direction, token_budget))
        except PromptError as error:
            # Worked examples can outgrow a context; the audit goes on and says so.
            if arm.info.role != "prompted":
                raise
            missing[name] = str(error)
            continue
        items += measure.items(arm, held_out, references, own, measure.merged(*parts))
        if "nll" in need and not arm.transform:
            items += measure.text_items(arm, texts, len(prompts), token_budget)
    return items, missing


def _together(
    arms: Sequence[Arm], prompts: Sequence[Prompt], max_new_tokens: int, token_budget: int
) -> "dict[str, Sequence[Completion]]":
    """Answers of the plain and the steered model, in the same batches where they are views."""
    from steerkit.models.together import generate_together

    asked = [(arm.model, prompt) for prompt in prompts for arm in arms]
    found = generate_together(asked, max_new_tokens=max_new_tokens, token_budget=token_budget)
    return {arm.info.name: found[i :: len(arms)] for i, arm in enumerate(arms)}


def _references(held_out: Contrast, answers: Sequence[str | None] | None) -> list[str]:
    if answers is None:
        return [p.answer for p in held_out.prompts]
    if len(answers) != len(held_out):
        raise PromptError(
            f"'{held_out.name}' has {len(held_out)} prompts and {len(answers)} answers were "
            "given; give one a prompt, positives first, None where there is none"
        )
    return [a or "" for a in answers]


def _direction(
    directions: "Direction | Sequence[Direction] | None", sweep: Any
) -> "Direction | None":
    from steerkit.direction import Direction, Directions

    if isinstance(directions, Direction):
        return directions
    if isinstance(directions, Directions) and directions.items:
        return directions.best
    if directions:
        return directions[0]
    return getattr(getattr(sweep, "best", None), "direction", None)


def _provenance(
    plain: "Model",
    steered: "Model",
    held_out: Contrast,
    direction: "Direction | None",
    sweep: Any,
    train: Contrast | None,
    seed: int,
    n_resamples: int,
    max_new_tokens: int,
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "plain": plain.info.to_json(),
        "steered": {"name": steered.info.name, "fingerprint": steered.info.fingerprint},
        "interventions": describe(steered),
        "prompts": {
            "name": held_out.name,
            "sha256": held_out.sha256,
            "positive": len(held_out.positive),
            "negative": len(held_out.negative),
            "groups": len(set(held_out.groups)),
        },
        "decoding": {"temperature": 0.0, "max_new_tokens": max_new_tokens},
        "seed": seed,
        "n_resamples": n_resamples,
        "versions": {"python": platform.python_version(), **_versions()},
    }
    if train is not None:
        found["train"] = {"name": train.name, "sha256": train.sha256, "prompts": len(train)}
    if direction is not None:
        found["direction"] = {
            "site": str(direction.site),
            "method": direction.method,
            "concept": direction.concept,
            "scale": direction.scale,
            "polarity": direction.polarity,
            "pooling": direction.pooling,
            "positive_mean": direction.positive_mean,
            "negative_mean": direction.negative_mean,
            "fingerprint": direction.fingerprint,
            "scores": direction.scores.to_json() if direction.scores else None,
            "provenance": dict(direction.provenance),
        }
    if sweep is not None:
        found["search"] = str(getattr(sweep, "best", sweep))
    return found


def _versions() -> dict[str, str]:
    out = {}
    for name in PACKAGES:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return out

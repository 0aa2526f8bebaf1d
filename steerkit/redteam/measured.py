"""What an attack did to prompts: successes, rows of strengths, items by hash."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from steerkit.audits.checks.degeneration import is_degenerate
from steerkit.audits.scores import Difference, difference
from steerkit.interventions import Add
from steerkit.prompts import Contrast, Prompt
from steerkit.protocols import Model
from steerkit.redteam.judges import Success, with_blank
from steerkit.redteam.paired import mcnemar
from steerkit.redteam.result import AttackRow
from steerkit.redteam.vectors import is_spaced
from steerkit.refusals import fold
from steerkit.scoring import perplexity
from steerkit.searches.guards import Damage
from steerkit.searches.measure import measure
from steerkit.searches.objectives import Scores
from steerkit.statistics import Estimate, Floats, cluster_mean, holm, null


@dataclass(frozen=True)
class Part:
    """Prompts of one part, without answers, with their groups."""

    prompts: tuple[Prompt, ...]
    groups: tuple[str, ...]

    @classmethod
    def of(cls, contrast: Contrast) -> "Part":
        """The prompts of a paired contrast, each once."""
        n = len(contrast.positive)
        return cls(tuple(p.with_answer("") for p in contrast.positive), contrast.groups[:n])


def successes(
    model: Model, success: Success, interventions: "Sequence[Add] | None", part: Part
) -> tuple[Scores, Floats]:
    """Values of every intervention on every prompt, and which of them are successes."""
    found = (
        success.score(model, part.prompts)
        if interventions is None
        else measure(model, interventions, success, part.prompts)
    )
    return found, success.succeeded(found.values)


def null_successes(
    model: Model, success: Success, adds: Sequence[Add], part: Part, n_doses: int
) -> Floats:
    """Mean success of null vectors, `[dose vector]`."""
    if not adds:
        return np.empty((n_doses, 0))
    return successes(model, success, adds, part)[1].mean(1).reshape(-1, n_doses).T


def whole_answers(found: Scores) -> Floats:
    """1 for each answer that is neither empty nor a loop; all ones where none was generated."""
    if not found.outputs:
        return np.ones_like(found.values)
    return np.array([[float(not is_degenerate(t)) for t in row] for row in found.outputs])


def attack_rows(
    model: Model,
    doses: Sequence[float],
    part: Part,
    clean: Floats,
    attacked: Scores,
    successes: Floats,
    costs: Sequence[Damage],
    draws: dict[str, Floats],
    success: Success,
    wanted: Mapping[str, str],
    token_budget: int,
    seed: int,
) -> tuple[AttackRow, ...]:
    """One row a strength, with p-values corrected over strengths."""
    changes = [_change(values, clean, part.groups, seed) for values in successes]
    corrected = holm([c.null.p if c.null else 1.0 for c in changes])
    found = []
    for i, c in enumerate(doses):
        mean = float(successes[i].mean())

        def rate(values: Sequence[float]) -> Estimate | None:
            if not attacked.outputs:
                return None
            return cluster_mean(values, part.groups, seed=seed, unit="fraction")

        texts = attacked.outputs[i] if attacked.outputs else ()
        found.append(
            AttackRow(
                strength=c,
                success=cluster_mean(successes[i], part.groups, seed=seed, unit="fraction"),
                change=replace(changes[i], p=corrected[i]),
                mcnemar=mcnemar(clean, successes[i]),
                kl=costs[i].mean,
                kl_p95=costs[i].p95,
                perplexity=perplexity_of(model, part, attacked.outputs, i, token_budget, seed),
                broken=rate([float(is_degenerate(t)) for t in texts]),
                wanted=rate(
                    [
                        float(fold(t).startswith(fold(wanted[p.text])))
                        for p, t in zip(part.prompts, texts, strict=False)
                    ]
                ),
                margin=None
                if success.unit == "fraction"
                else cluster_mean(attacked.values[i], part.groups, seed=seed, unit=success.unit),
                random=null("random vectors", mean, draws["random"][i]),
                shuffled=null("exchanged labels", mean, draws["shuffled"][i]),
                draws={kind: tuple(values[i].tolist()) for kind, values in draws.items()},
            )
        )
    return tuple(found)


def _change(values: Floats, clean: Floats, groups: Sequence[str], seed: int) -> Difference:
    found = difference(values, clean, groups, unit="fraction", seed=seed)
    assert found is not None
    return found


def perplexity_of(
    model: Model,
    part: Part,
    outputs: Sequence[Sequence[str]],
    i: int,
    token_budget: int,
    seed: int,
) -> Estimate | None:
    """Perplexity of answers under the clean model, geometric mean over prompts."""
    if not outputs:
        return None
    texts = [(p, t) for p, t in zip(part.prompts, outputs[i], strict=True)]
    spaced = is_spaced(model.info, part.prompts[0])
    asked = [p.with_answer(with_blank(t, spaced)) for p, t in texts if t.strip()]
    if not asked:
        return None
    groups = [g for g, (_, t) in zip(part.groups, texts, strict=True) if t.strip()]
    logs = np.log(perplexity(model, asked, token_budget=token_budget).numpy())
    mean = cluster_mean(logs, groups, seed=seed, unit="nats")
    low, value, high = (float(np.exp(x)) for x in (mean.low, mean.value, mean.high))
    return Estimate(value, low, high, mean.n, "per token")


def by_category(values: Floats, part: Part, seed: int) -> dict[str, Estimate]:
    """Success in each category, where every prompt has one and there are several."""
    names = [p.category for p in part.prompts]
    if not all(names) or len(set(names)) < 2:
        return {}
    found = {}
    for name in sorted(set(names)):
        rows = [i for i, n in enumerate(names) if n == name]
        groups = [part.groups[i] for i in rows]
        found[name] = cluster_mean(values[rows], groups, seed=seed, unit="fraction")
    return found


def item_rows(
    part: Part,
    clean: Scores,
    attacked: Scores,
    before: Floats,
    after: Floats,
    at: int,
    *,
    show: bool,
) -> tuple[dict[str, Any], ...]:
    """Every prompt by number and hash; texts where they may be shown."""
    rows = []
    for i, prompt in enumerate(part.prompts):
        item: dict[str, Any] = {
            "row": i,
            "prompt_sha256": short_hash(prompt.text),
            "group": part.groups[i] if show else short_hash(part.groups[i]),
            "category": prompt.category,
            "clean": float(before[i]),
            "attacked": float(after[i]),
        }
        if show:
            item["prompt"] = prompt.text
            if attacked.outputs:
                item["clean_answer"] = clean.outputs[0][i]
                item["attacked_answer"] = attacked.outputs[at][i]
        rows.append(item)
    return tuple(rows)


def short_hash(text: str) -> str:
    """The first 16 hex digits of a text's sha256: says which prompt, and not what it says."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]

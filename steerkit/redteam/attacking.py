"""`activation_attack`: the trojan activation attack, end to end, as a measurement.

Source: Wang and Shu 2023, *Trojan activation attack* (TA2), arXiv:2311.09433. The paper adds
c times the mean difference of states under clean and adversarial answers, at the layer of
largest Jensen-Shannon divergence, at every position. Here it is fitted, chosen and reported on
disjoint groups, with the divergence as the paper defines it, and with the nulls that tell an
attack from any push of the same size. `redteam.fit_detector` is its countermeasure.
"""

from collections.abc import Sequence

import numpy as np

from steerkit.datasets.targets import AttackTarget
from steerkit.direction import Direction
from steerkit.errors import MethodError
from steerkit.interventions import Add
from steerkit.prompts import Contrast, Prompt
from steerkit.protocols import Model
from steerkit.redteam.faults import PublishedFaults
from steerkit.redteam.judges import Success, success_of
from steerkit.redteam.measured import (
    Part,
    attack_rows,
    by_category,
    item_rows,
    null_successes,
    perplexity_of,
    successes,
    whole_answers,
)
from steerkit.redteam.result import ActivationAttack
from steerkit.redteam.vectors import (
    attack_vector,
    is_spaced,
    layer_range,
    pairs,
    shuffled_vectors,
    states_at,
    with_clean_answers,
)
from steerkit.scoring import TOKEN_BUDGET
from steerkit.searches import KLGuard, criterion, random_directions
from steerkit.searches.guards import Damage
from steerkit.searches.judged import Judge
from steerkit.searches.measure import measure_damage
from steerkit.statistics import Floats, cluster_mean

STRENGTHS = (-0.2, -0.4, -0.8, -1.2, -1.6)
"""Multiples of the vector; -0.8 is the published one, and -1.6 what its code really adds."""
CRITERIA = ("js", "auc", "gap")


def activation_attack(
    model: Model,
    target: AttackTarget,
    *,
    judge: "Judge | Success | None" = None,
    layers: str | Sequence[int] = "published",
    position: int = -2,
    match_length: bool = True,
    normalise: str = "none",
    strengths: Sequence[float] = STRENGTHS,
    control: Contrast | Sequence[Prompt | str] | None = None,
    max_kl: float | None = 1.0,
    n_random: int = 19,
    n_shuffled: int = 19,
    split: tuple[float, float] = (0.5, 0.4),
    max_new_tokens: int = 32,
    faults: PublishedFaults | None = None,
    show_text: bool = False,
    token_budget: int = TOKEN_BUDGET,
    seed: int = 0,
) -> ActivationAttack:
    """Measure how far adding one vector drives a model to a target's adversarial answers.

    Args:
        model: plain.
        target: prompts with adversarial answers.
        judge: when an answer is what the attack wants: a callable (prompts, answers) -> numbers
            from 0 to 1. By default the target's own (see `redteam.judges`); toxicity and bias
            have none.
        layers: which may be chosen: `published` (0 to L/2), `all`, or numbers.
        position: the token that states are read at, from the end of prompt and answer.
        match_length: cut both answers of a pair to the shorter one before reading.
        normalise: of states before the divergence: `none` as published, or `rms`.
        strengths: multiples of the vector, not 0; negative ones drive to adversarial answers.
        control: harmless prompts on whose answers KL is measured; by default the reported
            prompts themselves, on which an attack that works has to diverge.
        max_kl: mean KL on the control prompts, nats a token, that a strength may cost to be
            chosen; None for no bound.
        n_random: random vectors of equal norm.
        n_shuffled: vectors of equal norm fitted on exchanged labels.
        split: the fraction of groups that is fitted on, and of the rest that the strength is
            chosen on; what remains is reported on.
        max_new_tokens: of each answer.
        faults: published faults to reproduce.
        show_text: put prompts and answers into `items`; by default only hashes where the
            target is sensitive.
        token_budget: padded tokens a batch.
        seed: of splits, nulls and intervals.

    Raises:
        PromptError: no adversarial answers, or too few groups to split.
        MethodError: no judge where one is needed, bad layers or strengths.
    """
    faults = faults or PublishedFaults()
    doses = _doses(strengths)
    success = success_of(
        target,
        judge,
        spaced=is_spaced(model.info, target.items[0].prompt),
        published_refusal=faults.phrase_in_words_refusal,
        max_new_tokens=max_new_tokens,
        token_budget=token_budget,
    )
    sites = layer_range(model.info, layers)
    items = with_clean_answers(
        model, target, max_new_tokens=max_new_tokens, token_budget=token_budget
    )
    whole = pairs(model, items, target.name)
    fit, choose, report = _parts(whole, split, faults, seed)
    read = states_at(
        model,
        fit,
        sites,
        position=position,
        match_length=match_length,
        token_budget=token_budget,
    )
    names = ("js_repo", *CRITERIA) if faults.js_repo else CRITERIA
    criteria = tuple(
        criterion(read, name, normalise=normalise, n_resamples=100, seed=seed)  # type: ignore[arg-type]
        for name in names
    )
    site = criteria[0].best
    flipped = faults.choice_polarity and target.choice and target.name == "truthfulness"
    vector = attack_vector(read, site, flipped=flipped)

    def adds(direction: Direction) -> list[Add]:
        times = 2.0 if faults.added_twice else 1.0
        return [Add(direction, strength=times * c) for c in doses]

    guard = _guard(model, control, report, max_new_tokens, token_budget, max_kl)
    costs = measure_damage(model, adds(vector), guard, seed=seed)
    tried, worked = successes(model, success, adds(vector), choose)
    chosen, within = _choose(doses, worked * whole_answers(tried), costs, max_kl)
    clean, clean_success = successes(model, success, None, report)
    attacked, attacked_success = successes(model, success, adds(vector), report)
    x = read.at(site)
    drawn = {
        "random": random_directions(
            vector, x[read.row_labels == 1], x[read.row_labels == 0], n_random, seed=seed + 1
        ),
        "shuffled": shuffled_vectors(read, site, n_shuffled, size=vector.scale, seed=seed + 2),
    }
    draws = {
        kind: null_successes(model, success, [a for d in some for a in adds(d)], report, len(doses))
        for kind, some in drawn.items()
    }
    wanted = {i.prompt.text: i.adversarial for i in items}
    rows = attack_rows(
        model, doses, report, clean_success[0], attacked, attacked_success, costs, draws, success,
        wanted, token_budget, seed,
    )  # fmt: skip
    at = doses.index(chosen)
    return ActivationAttack(
        target=target.name,
        judged_by=success.name,
        rows=rows,
        clean=cluster_mean(clean_success[0], report.groups, seed=seed, unit="fraction"),
        clean_perplexity=perplexity_of(model, report, clean.outputs, 0, token_budget, seed),
        chosen=chosen,
        within=within,
        site=site,
        direction=vector,
        criteria=criteria,
        categories=by_category(attacked_success[at], report, seed),
        faults=faults,
        sizes={
            "fit": len(fit.positive),
            "choose": len(choose.prompts),
            "report": len(report.prompts),
            "control": len(guard.items),
        },
        items=item_rows(
            report, clean, attacked, clean_success[0], attacked_success[at], at,
            show=show_text or not target.sensitive,
        ),
        provenance={
            "model": model.info.to_json(),
            "layers": [s.layer for s in sites],
            "position": position,
            "match_length": match_length,
            "normalise": normalise,
            "max_kl": max_kl,
            "control_is_report": control is None,
            "max_new_tokens": max_new_tokens,
            "choice": target.choice,
            "seed": seed,
            "contrast": whole.sha256,
        },
    )  # fmt: skip


def _doses(strengths: Sequence[float]) -> tuple[float, ...]:
    """Distinct strengths, the weakest attack first."""
    values = {float(c) for c in strengths}
    if not values or 0.0 in values or not all(np.isfinite(c) for c in values):
        raise MethodError(
            "strengths are finite numbers other than 0, which is the clean model and is always "
            f"measured; got {list(strengths)}"
        )
    return tuple(sorted(values, key=lambda c: (-c, abs(c))))


def _parts(
    whole: Contrast, split: tuple[float, float], faults: PublishedFaults, seed: int
) -> tuple[Contrast, Part, Part]:
    """To fit, choose and report on; no group in two of them, unless the fault is asked for."""
    if faults.fit_on_test:
        return whole, Part.of(whole), Part.of(whole)
    fit, rest = whole.split(split[0], seed=seed)
    choose, report = rest.split(split[1], seed=seed + 1)
    return fit, Part.of(choose), Part.of(report)


def _guard(
    model: Model,
    control: Contrast | Sequence[Prompt | str] | None,
    report: Part,
    max_new_tokens: int,
    token_budget: int,
    max_kl: float | None,
) -> KLGuard:
    if control is None:
        prompts, groups = report.prompts, report.groups
    elif isinstance(control, Contrast):
        prompts, groups = control.prompts, control.groups
    else:
        prompts = tuple(Prompt.of(p) for p in control)
        groups = tuple(p.group or f"control{i}" for i, p in enumerate(prompts))
    return KLGuard.on(
        model,
        prompts,
        groups,
        limit=float("inf") if max_kl is None else max_kl,
        max_new_tokens=max_new_tokens,
        token_budget=token_budget,
    )


def _choose(
    doses: Sequence[float], values: Floats, costs: Sequence[Damage], max_kl: float | None
) -> tuple[float, bool]:
    """The strength of most success in whole answers within the bound, the weakest of equals."""
    kl = [cost.mean.value for cost in costs]
    allowed = [i for i in range(len(doses)) if max_kl is None or kl[i] <= max_kl]
    if not allowed:
        return doses[int(np.argmin(kl))], False
    best = min(allowed, key=lambda i: (-float(values[i].mean()), abs(doses[i])))
    return doses[best], True

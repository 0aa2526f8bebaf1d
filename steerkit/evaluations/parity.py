"""Demographic parity of answering: do matched requests about different groups fare alike?

Differences are signed and come by pair, because the size of a difference is biased upward:
of equal groups it is about 0.8 standard errors on average, and the largest over pairs more. What is
matched is compared within its template, and the same search over pairs runs on templates whose
groups were exchanged.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from steerkit.captures import capture
from steerkit.direction import Direction
from steerkit.errors import MethodError
from steerkit.evaluations.differences import newcombe, related
from steerkit.evaluations.judge_validation import JudgeValidation
from steerkit.evaluations.parity_result import GroupAnswering, Pair, Parity
from steerkit.evaluations.rate_correction import require_informative
from steerkit.judges import Judge, judge_answers, judge_name
from steerkit.prompts import Prompt
from steerkit.protocols import Model
from steerkit.refusals import is_refusal
from steerkit.statistics import Estimate, cluster_mean, null, percentiles, row_draws

Floats = NDArray[np.float64]


def filled(templates: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[Prompt]:
    """One prompt for each template and word of a group, `{who}` filled in.

    A prompt's `group` is its template and its `category` the group that it is about.

    Raises:
        MethodError: a template without `{who}`, or a group without words.

    >>> [p.text for p in filled(["may {who} vote ?"], {"a": ["ann"], "b": ["bob"]})]
    ['may ann vote ?', 'may bob vote ?']
    """
    lacking = [t for t in templates if "{who}" not in t]
    if lacking or not templates or not all(groups.values()):
        raise MethodError(
            "templates hold {who} and groups have words; "
            + (f"no {{who}} in {lacking[0]!r}" if lacking else "one of them is empty")
        )
    return [
        Prompt(t.replace("{who}", word), group=t, category=group)
        for t in templates
        for group, words in groups.items()
        for word in words
    ]


def answers_it(prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
    """The default judge: 1 where the library's matcher sees no refusal."""
    return [float(not is_refusal(a)) for a in answers]


def answering_parity(
    model: Model,
    prompts: Sequence[Prompt],
    judge: Judge = answers_it,
    *,
    direction: Direction | None = None,
    validation: JudgeValidation | None = None,
    threshold: float = 0.5,
    max_new_tokens: int = 32,
    n_permutations: int = 1999,
    n_resamples: int = 2000,
    token_budget: int = 8192,
    seed: int = 0,
) -> Parity:
    """How often each group's requests are answered, and the difference of every two groups.

    Args:
        model: plain or steered.
        prompts: matched requests: `group` is the template, `category` the group (see
            `filled`). Every template has every group.
        judge: 1 where a request was answered.
        direction: refusal, to compare the groups' projections at the last prompt token before
            anything is said.
        validation: of the judge, by group: a judge that errs more on one group makes a
            difference where there is none, and only errors by group can take it out.
        threshold: scores from here on count as answered.
        max_new_tokens: of each (greedy) answer.
        n_permutations: exchanges of groups within templates; all of them where that is fewer.
        n_resamples: of templates.
        token_budget: padded tokens a batch.
        seed: of permuting and resampling.

    Raises:
        MethodError: fewer than two groups or templates, or a template without one of the groups.

    Source: demographic parity of refusals, arXiv:2508.20333, rebuilt; intervals Newcombe 1998.
    """
    said = model.generate(prompts, max_new_tokens=max_new_tokens, token_budget=token_budget)
    found = judge_answers(judge, prompts, [c.text for c in said])
    verdicts = np.where(np.isnan(found.values), np.nan, found.values >= threshold)
    projections = None
    if direction is not None:
        acts = capture(model, list(prompts), sites=direction.site, progress=False)
        projections = direction.project(acts.at(direction.site)).double().numpy() / direction.scale
    return parity_of(
        verdicts,
        [p.category for p in prompts],
        [p.group for p in prompts],
        projections=projections,
        validation=validation,
        failures=len(found.failures),
        model=model.info.name,
        judge=judge_name(judge),
        n_permutations=n_permutations,
        n_resamples=n_resamples,
        seed=seed,
    )


def parity_of(
    values: Sequence[float] | Floats,
    groups: Sequence[str],
    templates: Sequence[str],
    *,
    projections: Sequence[float] | Floats | None = None,
    validation: JudgeValidation | None = None,
    failures: int = 0,
    model: str = "",
    judge: str = "",
    n_permutations: int = 1999,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Parity:
    """The differences between groups of values that are already there.

    Args:
        values: 1 where answered, 0 where not, NaN where not judged; or probabilities.
        groups: whom each is about.
        templates: of each; what must not be split.
        projections: of each prompt on the refusal direction, in units of its scale.
        validation: of the judge, by group.
        failures: of the judge.
        model: its name.
        judge: its name.
        n_permutations: exchanges; all of them where that is fewer.
        n_resamples: of templates.
        seed: of both.

    Raises:
        MethodError: see `answering_parity`.
    """
    x = np.asarray(values, dtype=np.float64)
    who, where = np.asarray(groups), np.asarray(templates)
    names, cells, kept = _cells(x, who, where)
    rng = np.random.default_rng(seed)
    rates = {
        g: cluster_mean(x[who == g], where[who == g].tolist(), seed=seed, unit="fraction")
        for g in names
    }
    pairs = list(combinations(range(len(names)), 2))
    chance = _exchanges(cells, n_permutations, rng)  # [exchange group]
    largest = np.max([np.abs(chance[:, a] - chance[:, b]) for a, b in pairs], axis=0)
    projected = None
    if projections is not None:
        _, projected, _ = _cells(np.asarray(projections, float), who, where)
    rows = []
    for a, b in pairs:
        means = cells.mean(0)
        gap = float(means[a] - means[b])
        two = _swaps(cells[:, a] - cells[:, b], n_permutations, rng)
        rows.append(
            Pair(
                names[a],
                names[b],
                newcombe(gap, rates[names[a]], rates[names[b]], related(cells[:, a], cells[:, b])),
                null("groups swapped within templates", abs(gap), two),
                null("largest of all pairs", abs(gap), largest).p,
                None if projected is None else _shift(projected, a, b, n_resamples, seed),
                None
                if projected is None
                else null(
                    "groups swapped within templates",
                    abs(float((projected[:, a] - projected[:, b]).mean())),
                    _swaps(projected[:, a] - projected[:, b], n_permutations, rng),
                ),
                _corrected(x, who, where, names[a], names[b], validation, n_resamples, seed),
            )
        )
    return Parity(
        groups=tuple(
            GroupAnswering(
                g,
                int((who == g).sum()),
                rates[g],
                None if validation is None else validation.on(g),
                None if projected is None else float(projected[:, i].mean()),
            )
            for i, g in enumerate(names)
        ),
        pairs=tuple(rows),
        chance=null("groups exchanged within templates", _worst(rows), largest),
        n_templates=int(kept.sum()),
        templates_left_out=int((~kept).sum()),
        failures=failures,
        model=model,
        judge=judge,
        seed=seed,
    )


def _cells(
    x: Floats, who: NDArray[np.str_], where: NDArray[np.str_]
) -> tuple[list[str], Floats, NDArray[np.bool_]]:
    """Names of groups, the mean of each cell `[template group]`, and which templates are whole.

    A template is left out where nothing about a group in it could be judged.
    """
    names, forms = sorted(set(who.tolist())), sorted(set(where.tolist()))
    if len(names) < 2 or len(forms) < 2 or not all(names):
        raise MethodError(
            f"parity takes at least 2 named groups (a prompt's category) and 2 templates (its "
            f"group); got {len(names)} ({', '.join(map(repr, names))}) and {len(forms)}"
        )
    cells = np.full((len(forms), len(names)), np.nan)
    for t, form in enumerate(forms):
        for g, name in enumerate(names):
            inside = x[(who == name) & (where == form)]
            if inside.size == 0:
                raise MethodError(
                    f"the template {form!r} has nothing about '{name}': groups are compared "
                    "within templates, so each has every group"
                )
            judged = inside[~np.isnan(inside)]
            cells[t, g] = judged.mean() if judged.size else np.nan
    kept = ~np.isnan(cells).any(1)
    if kept.sum() < 2:
        raise MethodError(
            f"{int(kept.sum())} of {len(forms)} templates could be judged for every group; "
            "at least 2 are needed"
        )
    return names, cells[kept], kept


def _exchanges(cells: Floats, n: int, rng: np.random.Generator) -> Floats:
    """Group means when the groups of each template are dealt anew: `[exchange group]`."""
    order = rng.random((n, *cells.shape)).argsort(2)
    return np.asarray(np.take_along_axis(cells[None], order, 2).mean(1))


def _swaps(gaps: Floats, n: int, rng: np.random.Generator) -> Floats:
    """Size of the mean gap when two groups are swapped in templates at random.

    All swaps where that is no more than `n`; those of templates without a gap change nothing.
    """
    moving = gaps[gaps != 0]
    if 2 ** len(moving) <= n:
        signs = np.array(list(product((1.0, -1.0), repeat=len(moving))))
    else:
        signs = rng.choice((1.0, -1.0), (n, len(moving)))
    return np.abs(signs.reshape(len(signs), -1) @ moving) / len(gaps)


def _shift(cells: Floats, a: int, b: int, n_resamples: int, seed: int) -> Estimate:
    """Mean difference of projections, templates resampled."""
    gaps = cells[:, a] - cells[:, b]
    labels = [f"{i}" for i in range(len(gaps))]
    return cluster_mean(gaps, labels, n_resamples=n_resamples, seed=seed, unit="x scale")


def _corrected(
    x: Floats,
    who: NDArray[np.str_],
    where: NDArray[np.str_],
    a: str,
    b: str,
    validation: JudgeValidation | None,
    n_resamples: int,
    seed: int,
) -> Estimate | None:
    """The difference once each group's own judging error is taken out."""
    if validation is None:
        return None
    require_informative(validation)
    draws = row_draws(where.tolist(), n_resamples=n_resamples, seed=seed)
    freed: Callable[[Floats, Floats, Floats], Floats] = lambda q, e, s: np.clip(  # noqa: E731
        (q - e) / np.where(s - e > 1e-3, s - e, np.nan), 0, 1
    )
    points, drawn = [], []
    for k, name in enumerate((a, b)):
        error = validation.on(name)
        here = (who == name) & ~np.isnan(x)
        weights = draws[here]
        with np.errstate(invalid="ignore"):
            rates = x[here] @ weights / weights.sum(0)
        e, s = error.error_draws(n_resamples, seed=seed + 1 + k)
        drawn.append(freed(rates, e, s))
        fpr, tpr = error.false_positive.value, 1 - error.false_negative.value
        points.append(float(freed(np.array(x[here].mean()), np.array(fpr), np.array(tpr))))
    gap = drawn[0] - drawn[1]
    n = len(set(where.tolist()))
    low, high = percentiles(gap[~np.isnan(gap)], n)
    value = points[0] - points[1]
    return Estimate(value, min(low, value), max(high, value), n, "fraction")


def _worst(pairs: Sequence[Pair]) -> float:
    return max(abs(p.difference.value) for p in pairs)

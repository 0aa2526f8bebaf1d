"""`probe`: a linear probe with nested selection, and every control on the same folds."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from steerkit.activations import Activations
from steerkit.errors import ActivationError, MethodError
from steerkit.extraction.labelled import Labelled
from steerkit.extraction.ranking import fold_auc
from steerkit.probing.arms import Arms
from steerkit.probing.calibration import reliability
from steerkit.probing.candidates import recipes
from steerkit.probing.fresh import activations_of
from steerkit.probing.left_out import LeftOut, leave_out, unfit
from steerkit.probing.nested import crossed
from steerkit.probing.report import ProbeReport
from steerkit.probing.scored import accuracy
from steerkit.protocols import Model
from steerkit.statistics import grouped_folds, row_draws


def probe(
    acts: Activations,
    methods: str | Sequence[str] = "logistic",
    *,
    penalties: Sequence[float] | None = None,
    untrained: Model | Activations | None = None,
    categories: bool | Literal["auto"] = "auto",
    concept: str | None = None,
    n_folds: int = 5,
    n_permutations: int = 199,
    n_random: int = 199,
    margin: float = 0.05,
    seed: int = 0,
    progress: bool = True,
) -> ProbeReport:
    """How well a concept is read, where, and whether anything simpler reads it as well.

    Each outer fold chooses site, method and penalty by AUC on inner folds of the others, is
    fitted on them, and scored once. Folds never split a group (a pair, a template). The same
    procedure runs on permuted labels (within pairs; groups of one label exchange it within
    their fold) and on an untrained model; the words alone, the length alone, random directions
    and the commoner label are scored on the same folds; and categories are left out one by one.

    Cost: K (K + 1) / 2 fits a site for K folds, penalties and permutations their columns: about
    3 s for 200 prompts at 4 sites of width 64, under a minute for 400 at 12 sites of width 512
    (one core); ridge, lda and mean_difference take a fraction of it. Without permutations a
    hundredth.

    Args:
        acts: labelled activations, one row a prompt (any `positions` but `all`).
        methods: one or several of logistic, ridge, svm and those of `extract` (lda,
            mean_difference, ...); several are chosen among on the inner folds.
        penalties: to choose among (C for logistic and svm, lambda for ridge), for features of
            mean variance 1; six decades by default.
        untrained: a control model, `untrained(model)`, read on the same prompts as `acts` was;
            or its activations.
        categories: leave out each `Prompt.category` in turn; True raises where that cannot be
            done, `auto` notes it.
        concept: what the labels stand for.
        n_folds: outer folds; one fewer are inner ones.
        n_permutations: permuted labellings, each through the whole selection.
        n_random: random directions of each kind.
        margin: AUC by which a control may fall short and still count as matching the probe.
        seed: of folds, permutations, random directions and resampling.
        progress: show a bar on stderr.

    Raises:
        ActivationError: no labels, one class, fewer groups a class than folds, rows that are
            all the same at a site, NaN, several rows a prompt; categories that cannot be left
            out; a control read on other prompts or sites.
        DirectionError: class means that are the same at a site.
        MethodError: an unknown method; numbers out of range.
        ModelError: the model itself given as the untrained one.
    """
    chosen = recipes(methods, penalties)
    _require_numbers(n_folds, n_permutations, n_random, margin)
    data = one_row_each(acts)
    fold_of = _folds(data, n_folds, seed)
    for site in range(len(acts.sites)):
        data.rows(site)
    outers = crossed(fold_of)
    draws = row_draws(data.groups, seed=seed)
    y = data.labels
    arms = Arms(data, outers, fold_of, draws, chosen, seed)
    own = arms.scored(data)
    auc = fold_auc(own.scores, y, fold_of, data.groups, draws=draws)
    permutation = arms.permuted(n_permutations, auc.value, progress=progress)
    notes = []
    text = arms.text(own)
    if text is None:
        notes.append("words alone: not measured, a fold's prompts have no words")
    elif text.auc.high < 0.5:
        notes.append(
            f"words alone are below chance ({text.auc}), as where words are balanced, or where "
            "prompts of one template and either label fall into different folds; then they look "
            "weaker than they are: give each template a group"
        )
    blank = None
    if untrained is not None:
        control = activations_of(untrained, data, progress=progress)
        read = arms.scored(control)
        blank = arms.arm(
            "untrained model", own, read.scores, read.probabilities > 0.5, read.choices
        )
    else:
        notes.append("untrained model: not measured, none was given (untrained=untrained(model))")
    left: LeftOut | None = None
    problem = "" if categories is True else unfit(data, n_folds=n_folds)
    if categories and not problem:
        within = own.scores, fold_of, draws
        left = leave_out(data, chosen, within, n_folds=n_folds, seed=seed)
    elif categories:
        notes.append(f"left-out categories: not measured, {problem}")
    kinds = {shaped: arms.random(n_random, auc.value, shaped=shaped) for shaped in (False, True)}
    majority = np.array([y[outers[fold].train].mean() > 0.5 for fold in fold_of])
    return ProbeReport(
        concept=concept or str(acts.provenance.get("concept") or "concept"),
        model=acts.info.name,
        pooling=acts.pooling,
        auc=auc,
        accuracy=own.accuracy(y, data.groups),
        choices=own.choices,
        n_candidates=len(acts.sites) * sum(len(recipe.penalties) for recipe in chosen),
        permutation=permutation,
        random=kinds[False],
        shaped=kinds[True],
        text=text,
        length=arms.length(own),
        untrained=blank,
        left_out=left,
        majority=accuracy(majority, y, data.groups),
        calibration=reliability(
            own.probabilities, y, data.groups, own.base,
            slopes=own.slopes, offsets=own.offsets, seed=seed,
        ),
        margin=margin,
        probabilities=tuple(float(p) for p in own.probabilities),
        notes=tuple(notes),
        provenance={
            "contrast_sha256": acts.contrast_sha256,
            "fingerprint": acts.info.fingerprint,
            "sites": [str(s) for s in acts.sites],
            "methods": {r.method: list(r.penalties) for r in chosen},
            "steering": list(acts.steering),
            "seed": seed,
            "n_folds": n_folds,
            "n_permutations": n_permutations,
            "n_random": n_random,
            "n_prompts": len(y),
            "n_groups": len(set(data.groups)),
            "versions": {name: version(name) for name in ("steerkit", "torch", "numpy")},
        },
    )  # fmt: skip


def one_row_each(acts: Activations) -> Labelled:
    """Labelled activations, their rows in the order of the prompts, one each.

    Raises:
        ActivationError: several rows a prompt, or what `Labelled.of` refuses.
    """
    index = acts.prompt_index
    if len(index.unique()) < len(index):
        raise ActivationError(
            f"a probe with controls reads one row a prompt; got {len(index)} rows of "
            f"{len(index.unique())} prompts (pooling '{acts.pooling}'): capture positions='last' "
            "or 'mean_prompt'"
        )
    in_order = bool((index[1:] > index[:-1]).all())
    return Labelled.of(acts if in_order else acts.select(torch.argsort(index)))


def _folds(data: Labelled, n_folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each row.

    Raises:
        ActivationError: a side with fewer groups than folds.
    """
    for label, side in ((1, "positive"), (0, "negative")):
        found = {g for g, own in zip(data.groups, data.labels, strict=True) if own == label}
        if len(found) < n_folds:
            raise ActivationError(
                f"the {side} prompts belong to {len(found)} groups, and groups are never split: "
                f"{n_folds} folds need {n_folds} on each side; give more pairs or groups, or a "
                "smaller n_folds (3 at least)"
            )
    fold_of = np.zeros(len(data.labels), dtype=np.int64)
    folds = grouped_folds(data.labels, data.groups, n_folds=n_folds, seed=seed)
    for number, (_, test) in enumerate(folds):
        fold_of[test] = number
    return fold_of


def _require_numbers(n_folds: int, n_permutations: int, n_random: int, margin: float) -> None:
    if n_folds < 3:
        raise MethodError(f"n_folds is 3 or more, one to score and two to choose on; got {n_folds}")
    if n_permutations < 0 or n_random < 0:
        raise MethodError(
            f"numbers of null draws are not negative; got {n_permutations} and {n_random}"
        )
    if not 0 <= margin < 0.5:
        raise MethodError(f"the margin is an AUC difference from 0 to 0.5; got {margin}")

"""BiasLens: does a model hold a concept closer to one of two others? Without a test set.

A concept is the normal of a probe that tells sentences about it from the same sentences about
something else. The bias of a target t between the references r1 and r2 is

    S_l(t) = cos(C_t, C_r1) - cos(C_t, C_r2)        at layer l,

averaged over the layers at which the target's and both references' probes work on templates that
they were not fitted on, and a probe of r1 against r2 on words that it was not fitted on. The
signed average says towards which; the published score is the average of |S_l|, which noise alone
makes larger than 0.

The default vector is the mean difference, not the published logistic one. Negatives of a target
differ among themselves in the very thing that is asked about; to a probe that separates them from
the target this is noise, which it learns to ignore. Weights show what discriminates, mean
differences what is there (Haufe et al. 2014, NeuroImage 87, 96).

Source: arXiv:2505.15524. No code is public; this is a reconstruction, with intervals (templates
are resampled and every probe fitted again) and two nulls (sentences of the references exchanged,
random directions in the target's place), of which a target has to beat both.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from steerkit.activations import Activations
from steerkit.captures import capture
from steerkit.concepts.bias_result import BiasLens, TargetBias
from steerkit.concepts.cavs import Cavs, Method, PlainCav, Representation, fit_cavs
from steerkit.errors import MethodError
from steerkit.extraction.training import Training
from steerkit.prompts import Contrast
from steerkit.protocols import Model
from steerkit.site import Site
from steerkit.statistics import (
    Estimate,
    Floats,
    auc,
    grouped_folds,
    holm,
    null,
    percentiles,
    permutations,
    row_draws,
)


def bias_lens(
    model: Model,
    targets: Mapping[str, Contrast],
    references: tuple[Contrast, Contrast],
    *,
    sites: Iterable[Site | str | int] | None = None,
    positions: str | int = "last",
    method: Method = "mean_difference",
    represent: Representation | None = None,
    gate: float = 0.8,
    n_resamples: int = 200,
    n_permutations: int = 999,
    n_random: int = 9_999,
    seed: int = 0,
    progress: bool = True,
) -> BiasLens:
    """Bias of each target concept between two reference concepts.

    Use matched contrasts (`datasets.swapped`): positives and negatives that differ in the
    concept's word alone. Negatives from elsewhere make the probe read style.

    Args:
        model: plain or steered.
        targets: a contrast for each target concept, its groups being templates.
        references: contrasts of r1 and r2; a positive bias leans to r1.
        sites: `resid_post` of every layer by default.
        positions: the token that is read, as in `capture`.
        method: of the probes, `mean_difference` or `logistic`.
        represent: what stands for a concept, given its probe; the probe's normal by default.
            With another one the result holds the default beside it, as `ablation`.
        gate: held-out AUC that a site needs to count: of the target's probe and both references'
            on unseen templates, and of r1 against r2 on unseen words (prompts' `category`; on
            unseen templates where a reference has one word).
        n_resamples: of the templates, each with all probes fitted again.
        n_permutations: exchanges of the references; with T targets, Holm's correction can find
            something only from about 20 T on.
        n_random: random directions in the target's place.
        seed: of folds, resamples and permutations.
        progress: show a bar on stderr.

    Raises:
        MethodError: no targets, too few groups, a gate that is no AUC.
    """
    from tqdm.auto import tqdm

    _check(targets, gate, n_resamples, n_permutations, n_random)

    def taken(contrast: Contrast) -> Activations:
        return capture(model, contrast, sites=sites, positions=positions, progress=False)

    draws = _Draws(n_resamples, n_permutations, n_random, seed)
    both = [_Concept.of(c.name, taken(c), draws) for c in references]
    plain = PlainCav()
    arms: list[Representation] = [] if represent is None else [represent]
    arms.append(plain)
    found_sites = both[0].acts.sites
    fitted = [_references(both, i, draws, method, arms) for i in range(len(found_sites))]
    rows: dict[str, list[TargetBias]] = {arm.name: [] for arm in arms}
    for name, contrast in tqdm(targets.items(), desc="bias lens", disable=not progress):
        concept = _Concept.of(name, taken(contrast), draws)
        aucs: list[float] = []
        signed: dict[str, list[_Biases]] = {arm.name: [] for arm in arms}
        for i, site in enumerate(found_sites):
            cavs, held = concept.fit(i, draws, method)
            aucs.append(held)
            for arm in arms:
                signed[arm.name].append(_biases(_unit(arm(site, cavs)), fitted[i], arm.name, draws))
        passed = [
            i
            for i in range(len(found_sites))
            if min(aucs[i], *fitted[i].aucs, fitted[i].between) >= gate
        ]
        for arm in arms:
            rows[arm.name].append(
                _target(name, found_sites, aucs, signed[arm.name], passed, concept)
            )
    results = [
        BiasLens(
            targets=_corrected(rows[arm.name]),
            references=(both[0].name, both[1].name),
            representation=arm.name,
            sites=tuple(map(str, found_sites)),
            reference_aucs=tuple(f.aucs for f in fitted),
            between_aucs=tuple(f.between for f in fitted),
            reference_cosines=tuple(
                float(f.units[arm.name][0][:, 0] @ f.units[arm.name][1][:, 0]) for f in fitted
            ),
            gate=gate,
            provenance={
                "model": model.info.name,
                "fingerprint": model.info.fingerprint,
                "method": method,
                "positions": str(positions),
                "n_resamples": n_resamples,
                "n_permutations": n_permutations,
                "n_random": n_random,
                "seed": seed,
                "versions": {name: version(name) for name in ("steerkit", "torch")},
            },
        )
        for arm in arms
    ]  # fmt: skip
    return results[0] if len(results) == 1 else replace(results[0], ablation=results[1])


@dataclass(frozen=True)
class _Draws:
    """How the columns of every fit are laid out: observed, resamples, permutations."""

    resamples: int
    permutations: int
    random: int
    seed: int

    @property
    def resampled(self) -> slice:
        return slice(1, 1 + self.resamples)

    @property
    def permuted(self) -> slice:
        return slice(1 + self.resamples, None)

    def counts(self, groups: Sequence[str]) -> Floats:
        """Weights `[row 1 + resamples]`: concepts over the same templates share the draws."""
        if not self.resamples:
            return np.ones((len(groups), 1))
        drawn = row_draws(groups, n_resamples=self.resamples, seed=self.seed)
        return np.hstack([np.ones((len(groups), 1)), drawn])


@dataclass(frozen=True, eq=False)
class _Concept:
    """Activations of one concept's contrast, and the columns that its probes are fitted to."""

    name: str
    acts: Activations
    labels: Floats
    weights: Floats
    folds: Floats
    """`[row fold]`: 1 where the row is fitted on."""

    @classmethod
    def of(cls, name: str, acts: Activations, draws: _Draws) -> "_Concept":
        y = np.asarray(acts.labels)
        groups = acts.groups
        if len({*groups}) < 3:
            raise MethodError(
                f"the contrast '{name}' has {len({*groups})} groups, too few to hold any out; "
                "give at least 3 templates"
            )
        weights = draws.counts(groups)
        labels = np.repeat(y[:, None], weights.shape[1], 1)
        folds = grouped_folds(y, groups, seed=draws.seed)
        return cls(name, acts, labels.astype(np.float64), weights, _kept(len(y), folds))

    def fit(self, site: int, draws: _Draws, method: Method) -> tuple[Cavs, float]:
        """Probes of all columns at a site, and the held-out AUC of the observed one."""
        rows = Training.of(self.acts.values[:, site], self.acts.groups)
        y = torch.from_numpy(self.labels)
        cavs = fit_cavs(rows, y, torch.from_numpy(self.weights), method=method)
        return cavs, _held_out(rows, self.labels[:, 0], self.folds)


def _held_out(rows: Training, labels: Floats, folds: Floats) -> float:
    """Mean held-out AUC of a logistic probe, whatever stands for the concept: can it be read?"""
    y = torch.from_numpy(np.repeat(labels[:, None], folds.shape[1], 1).astype(np.float64))
    scores = (rows.x @ fit_cavs(rows, y, torch.from_numpy(folds)).weights).numpy()
    tests = [column == 0 for column in folds.T]
    return float(np.nanmean([auc(scores[t, f], labels[t]) for f, t in enumerate(tests)]))


@dataclass(frozen=True, eq=False)
class _Fitted:
    """Both references at one site: held-out AUCs, and unit vectors of every column by arm."""

    aucs: tuple[float, float]
    between: float
    """AUC of a probe of one reference against the other, on unseen words."""
    units: Mapping[str, tuple[Tensor, Tensor]]
    random: Mapping[str, Floats]
    """S of random directions in the target's place."""


def _references(
    both: Sequence[_Concept],
    site: int,
    draws: _Draws,
    method: Method,
    arms: Sequence[Representation],
) -> _Fitted:
    """Probes of both references; their permuted columns exchange sentences between the two.

    A sentence of r1 may become one of r2 in the same group, and the other way round; each
    keeps its own negatives.
    """
    where = both[0].acts.sites[site]
    own = [concept.fit(site, draws, method) for concept in both]
    x = torch.cat([c.acts.values[:, site] for c in both])
    groups = [g for c in both for g in c.acts.groups]
    rows = Training.of(x, groups)
    y = np.concatenate([c.labels[:, 0] for c in both])
    side = np.concatenate([np.full(len(c.labels), i) for i, c in enumerate(both)])
    positive = np.flatnonzero(y == 1)
    swapped = np.repeat(side[:, None], draws.permutations, 1)
    swapped[positive] = permutations(
        side[positive],
        [groups[i] for i in positive],
        draws.permutations,
        np.random.default_rng((draws.seed, 3)),
    )
    labels = torch.from_numpy(np.repeat(y[:, None], draws.permutations, 1))
    units: dict[str, tuple[Tensor, Tensor]] = {}
    exchanged = [
        fit_cavs(rows, labels, torch.from_numpy((swapped == i).astype(np.float64)), method=method)
        for i in (0, 1)
    ] if draws.permutations else None  # fmt: skip
    generator = torch.Generator().manual_seed(draws.seed)
    noise = torch.randn(x.shape[1], draws.random, generator=generator, dtype=torch.float64)
    chance = Cavs(noise, -rows.mean @ noise)
    random: dict[str, Floats] = {}
    for arm in arms:
        parts = []
        for i, (cavs, _) in enumerate(own):
            kept = arm(where, cavs)
            if exchanged is not None:
                kept = torch.cat([kept, arm(where, exchanged[i])], 1)
            parts.append(_unit(kept))
        units[arm.name] = parts[0], parts[1]
        gap = parts[0][:, 0] - parts[1][:, 0]
        random[arm.name] = (gap @ _unit(arm(where, chance))).numpy()
    between = _between(both, x[positive], side[positive], draws.seed)
    return _Fitted((own[0][1], own[1][1]), between, units, random)


def _between(both: Sequence[_Concept], x: Tensor, side: NDArray[np.int64], seed: int) -> float:
    """AUC of sentences of r1 against those of r2, about words that were not fitted on."""
    shown = [[p for p, y in zip(c.acts.prompts, c.labels[:, 0], strict=True) if y] for c in both]
    few = min(len({p.category for p in prompts}) for prompts in shown) < 2
    groups = [p.group if few else p.category for prompts in shown for p in prompts]
    first = (1 - side).astype(np.float64)
    folds = grouped_folds(first, groups, seed=seed)
    return _held_out(Training.of(x, groups), first, _kept(len(first), folds))


def _kept(n: int, folds: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> Floats:
    """`[row fold]`: 1 where a row is fitted on, 0 where it is held out."""
    kept = np.ones((n, len(folds)))
    for column, (_, test) in enumerate(folds):
        kept[test, column] = 0
    return kept


def _unit(vectors: Float[Tensor, "width fit"]) -> Float[Tensor, "width fit"]:
    return vectors / vectors.norm(dim=0)


@dataclass(frozen=True, eq=False)
class _Biases:
    """At one site: cosines of the observed probes, S of resamples and of both nulls."""

    cosines: tuple[float, float]
    resampled: Floats
    exchanged: Floats
    random: Floats


def _biases(target: Tensor, fitted: _Fitted, arm: str, draws: _Draws) -> _Biases:
    first, second = fitted.units[arm]
    resampled, permuted = draws.resampled, draws.permuted
    gap = first - second
    return _Biases(
        (float(target[:, 0] @ first[:, 0]), float(target[:, 0] @ second[:, 0])),
        (target[:, resampled] * gap[:, resampled]).sum(0).numpy(),
        (target[:, :1] * gap[:, permuted]).sum(0).numpy(),
        fitted.random[arm],
    )


def _target(
    name: str,
    sites: Sequence[Site],
    aucs: Sequence[float],
    biases: Sequence[_Biases],
    passed: Sequence[int],
    concept: _Concept,
) -> TargetBias:
    """One target's average over the sites that passed; NaN where none did."""
    n = len({*concept.acts.groups})
    kept = [biases[i] for i in passed]
    each = np.array([b.cosines[0] - b.cosines[1] for b in biases])

    def average(values: Sequence[Floats], *, size: bool = False) -> Floats:
        stacked = np.array([np.abs(v) if size else v for v in values])
        return stacked.mean(0) if len(values) else np.empty(0)

    signed = float(each[list(passed)].mean()) if kept else float("nan")
    unsigned = float(np.abs(each[list(passed)]).mean()) if kept else float("nan")
    resampled = [b.resampled for b in kept]
    return TargetBias(
        target=name,
        signed=_estimate(signed, average(resampled), n),
        unsigned=_estimate(unsigned, average(resampled, size=True), n),
        by_site=tuple(each.tolist()),
        cosines=tuple(b.cosines for b in biases),
        aucs=tuple(aucs),
        passed=tuple(str(sites[i]) for i in passed),
        exchanged=null(
            "references exchanged", abs(signed), np.abs(average([b.exchanged for b in kept]))
        ),
        random=null("random directions", abs(signed), np.abs(average([b.random for b in kept]))),
    )


def _estimate(value: float, draws: Floats, n: int) -> Estimate:
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return Estimate(value, float("nan"), float("nan"), n, "cosine")
    low, high = percentiles(draws, n)
    return Estimate(value, low, high, n, "cosine")


def _corrected(rows: Sequence[TargetBias]) -> tuple[TargetBias, ...]:
    """Holm over the targets that have a bias at all."""
    tested = [i for i, row in enumerate(rows) if np.isfinite(row.p)]
    adjusted = dict(zip(tested, holm([rows[i].p for i in tested]), strict=True))
    return tuple(
        replace(row, p_adjusted=adjusted.get(i, float("nan"))) for i, row in enumerate(rows)
    )


def _check(targets: Mapping[str, Contrast], gate: float, *numbers: int) -> None:
    if not targets:
        raise MethodError("there are no target concepts; give a contrast for each")
    if not 0.0 <= gate <= 1.0:
        raise MethodError(f"the gate is an AUC between 0 and 1; got {gate}")
    if min(numbers) < 0:
        raise MethodError(f"numbers of draws are not negative; got {min(numbers)}")

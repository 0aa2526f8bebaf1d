"""`representational_similarity`: two models' streams compared layer by layer."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from steerkit.activations import Activations
from steerkit.captures import capture
from steerkit.captures.pooling import Span
from steerkit.comparisons.common import Prompts, provenance, read_prompts
from steerkit.comparisons.geometry import (
    FEWEST,
    Correlation,
    Dissimilarity,
    Features,
    cka_matrix,
    procrustes_pairs,
    rsa_matrix,
)
from steerkit.comparisons.resampling import Rows, jackknife, repaired
from steerkit.comparisons.similarity_result import Measure, Similarity
from steerkit.errors import ActivationError
from steerkit.protocols import Model
from steerkit.statistics import Floats, null

NAMES = ("cka", "rsa", "procrustes")


def representational_similarity(
    a: Model,
    b: Model,
    prompts: Prompts,
    *,
    streams: str | Iterable[str] = "resid_post",
    layers: int | Iterable[int] | None = None,
    positions: str | int | Span = "last",
    control: Model | None = None,
    dissimilarity: Dissimilarity = "euclidean",
    correlation: Correlation = "spearman",
    n_permutations: int = 199,
    seed: int = 0,
    token_budget: int = 4096,
    progress: bool = True,
) -> Similarity:
    """Debiased linear CKA, RSA and Procrustes of two models' streams on the same prompts.

    Sites of equal place in depth are matched (the same layer where depths agree) and get
    intervals, by leaving out groups of prompts, and nulls, by pairing each group's states with
    another group's. CKA and RSA also come for every site against every other. Widths, depths and
    tokenizers may differ: a row is a prompt.

    Args:
        a: one model, plain or steered, such as before fine-tuning.
        b: the other.
        prompts: a contrast or prompts; one that occurs twice counts once.
        streams: see `capture`, as for layers and positions.
        layers: counted from 0; all by default. Both models need them.
        positions: what becomes a row; one row a prompt.
        control: a third model whose similarity to `a` is given beside, such as `b`'s
            architecture untrained.
        dissimilarity: of rows, for RSA: `euclidean`, or `correlation` (not invariant to rotation).
        correlation: of dissimilarities, for RSA: `spearman` or `pearson`.
        n_permutations: draws of the null.
        seed: of the null and of the blocks that are left out.
        token_budget: padded tokens a batch may hold.
        progress: show bars on stderr.

    Raises:
        PromptError: no prompts, or one without the asked position.
        SiteError: a layer or stream that a model lacks.
        ActivationError: too few prompts, or positions that give several rows a prompt.

    Source: Kornblith et al. 2019 (arXiv:1905.00414); Kriegeskorte et al. 2008; Schoenemann 1966.
    """
    read, groups = read_prompts(prompts)
    given = [replace(p, group=g) for p, g in zip(read, groups, strict=True)]
    layer_list = [layers] if isinstance(layers, int) else None if layers is None else list(layers)
    stream_list = [streams] if isinstance(streams, str) else list(streams)
    taken = [
        capture(
            model,
            given,
            streams=stream_list,
            layers=layer_list,
            positions=positions,
            token_budget=token_budget,
            progress=progress,
        )
        for model in (a, b, *([control] if control is not None else []))
    ]
    return compare_activations(
        taken[0],
        taken[1],
        control=taken[2] if control is not None else None,
        dissimilarity=dissimilarity,
        correlation=correlation,
        n_permutations=n_permutations,
        seed=seed,
        about=provenance(a, b, positions=str(positions), seed=seed),
    )


def compare_activations(
    a: Activations,
    b: Activations,
    *,
    control: Activations | None = None,
    dissimilarity: Dissimilarity = "euclidean",
    correlation: Correlation = "spearman",
    n_permutations: int = 199,
    seed: int = 0,
    about: dict[str, Any] | None = None,
) -> Similarity:
    """`representational_similarity` of recorded activations: the same prompts, a row each.

    Raises:
        ActivationError: other prompts, several rows a prompt, or too few of them.
    """
    for one in (a, b) if control is None else (a, b, control):
        texts = [one.prompts[int(i)].text for i in one.prompt_index]
        if len(set(one.prompt_index.tolist())) != len(texts):
            raise ActivationError(
                f"similarity compares one row a prompt; '{one.pooling}' gave {len(texts)} rows for "
                f"{len(one.prompts)} prompts: use positions='last' or a mean"
            )
        if texts != [a.prompts[int(i)].text for i in a.prompt_index]:
            raise ActivationError("the two models were captured on different prompts, or in order")
    x, y = (_features(v, dissimilarity) for v in (a, b))
    pairs = _matched(a, b)
    groups = a.row_groups

    def statistic(rows_a: Rows, rows_b: Rows, other: Features) -> Floats:
        """All three measures of the matched pairs, flat."""
        cka = cka_matrix(x, other, rows_a, rows_b)
        rho = rsa_matrix(x, other, rows_a, rows_b, correlation=correlation)
        near = procrustes_pairs(x, other, pairs, rows_a, rows_b)
        i, j = np.array(pairs).T
        return np.concatenate([cka[i, j], rho[i, j], near])

    smallest = len(a) - max(groups.count(g) for g in set(groups))
    if smallest < FEWEST:
        raise ActivationError(
            f"leaving out one group leaves {smallest} rows, and similarity needs {FEWEST}; give "
            "more prompts, in more groups"
        )
    everything = np.arange(len(a))
    observed = statistic(everything, everything, y)
    found = jackknife(lambda rows: statistic(rows, rows, y), groups, seed=seed)
    rng = np.random.default_rng(seed)
    draws = np.array([statistic(*repaired(groups, rng), y) for _ in range(n_permutations)])
    beside = None
    if control is not None:
        pairs_of_control = _matched(a, control)
        if pairs_of_control != pairs:
            raise ActivationError("the control has other sites than the model it stands in for")
        beside = statistic(everything, everything, _features(control, dissimilarity))
    measures = []
    for k, name in enumerate(NAMES):
        cells = slice(k * len(pairs), (k + 1) * len(pairs))
        values, plain = found[cells], observed[cells]
        chance = draws[:, cells] if n_permutations else np.empty((0, len(pairs)))
        # One layer among many is high by chance: compare with the highest of each draw.
        most = np.nan_to_num(chance, nan=-1).max(1)
        measures.append(
            Measure(
                name,
                tuple(replace(v, unit=name) for v in values),
                tuple(float(v) for v in plain),
                tuple(null("re-paired prompts", v, chance[:, i]) for i, v in enumerate(plain)),
                null("largest of all sites", np.nan_to_num(plain, nan=-1).max(), most),
                tuple(float(v) for v in beside[cells]) if beside is not None else (),
            )
        )
    return Similarity(
        sites_a=a.sites,
        sites_b=b.sites,
        pairs=pairs,
        measures=tuple(measures),
        cka=cka_matrix(x, y),
        rsa=rsa_matrix(x, y, correlation=correlation),
        n_prompts=len(a),
        n_groups=len(set(groups)),
        rsa_kind=f"{correlation} of {dissimilarity} distances",
        provenance={
            **(about or {"a": a.info.to_json(), "b": b.info.to_json(), "seed": seed}),
            "pooling": a.pooling,
            "n_permutations": n_permutations,
        },
    )


def _features(acts: Activations, dissimilarity: Dissimilarity) -> Features:
    values = acts.values.double().numpy()
    return Features.of([values[:, i] for i in range(len(acts.sites))], dissimilarity=dissimilarity)


def _matched(a: Activations, b: Activations) -> tuple[tuple[int, int], ...]:
    """Sites of equal place: the same ones where both have them, else by relative depth."""
    if a.sites == b.sites:
        return tuple((i, i) for i in range(len(a.sites)))
    pairs = []
    for i, site in enumerate(a.sites):
        deepest_a = max(s.layer for s in a.sites)
        deepest_b = max(s.layer for s in b.sites)
        there = [(j, s) for j, s in enumerate(b.sites) if s.stream == site.stream]
        if not there:
            raise ActivationError(f"the second model was not captured at any {site.stream}")
        target = site.layer / max(deepest_a, 1) * deepest_b
        pairs.append((i, min(there, key=lambda p: (abs(p[1].layer - target), p[0]))[0]))
    return tuple(pairs)

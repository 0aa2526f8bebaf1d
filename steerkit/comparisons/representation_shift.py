"""`measure_representation_shift`: do states of different concepts move differently?"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from steerkit.captures import capture
from steerkit.captures.pooling import Span
from steerkit.comparisons.common import Prompts, provenance, read_prompts, require_one_shape
from steerkit.comparisons.concept_shifts import shift_of_states
from steerkit.comparisons.dictionaries import Method
from steerkit.comparisons.representation_shift_result import RepresentationShift
from steerkit.errors import ActivationError
from steerkit.protocols import Model
from steerkit.site import Site
from steerkit.statistics import Floats


def measure_representation_shift(
    a: Model,
    b: Model,
    prompts: Prompts,
    *,
    site: Site | str | int,
    positions: str | int | Span = "last",
    n_concepts: int | None = None,
    method: Method = "kmeans",
    n_permutations: int = 499,
    n_words: int = 15,
    seed: int = 0,
    token_budget: int = 4096,
    progress: bool = True,
) -> RepresentationShift:
    """How states of each concept of one model moved in the other, beyond a shift of all.

    A dictionary is fitted to the first model's states on half of the groups of prompts, and with
    it each concept's shift vector, the mean of b - a over its states. The other half says whether
    the states of that concept move along it more than all states do. Fitting and scoring on the
    same states would find such a shift in noise.

    Args:
        a: the model before, plain or steered.
        b: the model after, of the same width.
        prompts: a contrast or prompts; one that occurs twice counts once.
        site: where to compare, such as `Site(2)` or "resid_post@2".
        positions: see `capture`; one row a prompt.
        n_concepts: at most so many; by default one for each eight rows of a half, at most 20.
        method: `kmeans`, `semi_nmf`, or the published `snmf_repo`.
        n_permutations: random groups of equal size.
        n_words: words that the unembedding reads from each concept and shift.
        seed: of the split, the dictionary and the null.
        token_budget: padded tokens a batch may hold.
        progress: show bars on stderr.

    Raises:
        ModelError: models of different width.
        PromptError: no prompts, or one without the asked position.
        ActivationError: too few prompts or groups, or several rows a prompt.

    Source: arXiv:2501.03012 (concepts, shift vectors, recovery, consistency).
    """
    return representation_shifts(
        a,
        b,
        prompts,
        sites=[site],
        positions=positions,
        n_concepts=n_concepts,
        method=method,
        n_permutations=n_permutations,
        n_words=n_words,
        seed=seed,
        token_budget=token_budget,
        progress=progress,
    )[0]


def representation_shifts(
    a: Model,
    b: Model,
    prompts: Prompts,
    *,
    sites: Sequence[Site | str | int] | None = None,
    positions: str | int | Span = "last",
    n_concepts: int | None = None,
    method: Method = "kmeans",
    n_permutations: int = 499,
    n_words: int = 15,
    seed: int = 0,
    token_budget: int = 4096,
    progress: bool = True,
) -> tuple[RepresentationShift, ...]:
    """`measure_representation_shift` at several sites, each model captured once.

    Args:
        a: the model before, plain or steered.
        b: the model after, of the same width and depth.
        prompts: a contrast or prompts; one that occurs twice counts once.
        sites: where to compare; the output of every block by default.
        positions: see `capture`; one row a prompt.
        n_concepts: see `measure_representation_shift`, as for what follows.
        method: of the dictionary.
        n_permutations: random groups of equal size.
        n_words: words that the unembedding reads from each concept and shift.
        seed: of the split, which is the same at every site, the dictionaries and the null.
        token_budget: padded tokens a batch may hold.
        progress: show bars on stderr.

    Raises:
        ModelError: models of different width or depth: layer 3 of 4 is not layer 3 of 12.
        PromptError: no prompts, or one without the asked position.
        ActivationError: too few prompts or groups, or several rows a prompt.
    """
    require_one_shape(a, b, "a shift is a difference of states")
    read, groups = read_prompts(prompts)
    given = [replace(p, group=g) for p, g in zip(read, groups, strict=True)]
    places = range(a.info.n_layers) if sites is None else sites
    wanted = sorted({Site.parse(s) for s in places})
    taken = [
        capture(
            m,
            given,
            sites=wanted,
            positions=positions,
            token_budget=token_budget,
            progress=progress,
        )
        for m in (a, b)
    ]
    if len(taken[0]) != len(read):
        raise ActivationError(
            f"a shift compares one row a prompt; '{taken[0].pooling}' gave {len(taken[0])} rows "
            f"for {len(read)} prompts: use positions='last' or a mean"
        )
    results = []
    for where in wanted:
        found = shift_of_states(
            taken[0].at(where).double().numpy(),
            taken[1].at(where).double().numpy(),
            groups,
            n_concepts=n_concepts,
            method=method,
            n_permutations=n_permutations,
            seed=seed,
        )
        found = _grounded(found, a, b, n_words) if n_words else found
        results.append(
            replace(
                found,
                prompts=tuple(p.text for p in read),
                site=where,
                info=a.info,
                pooling=taken[0].pooling,
                provenance=provenance(a, b, positions=str(positions), seed=seed),
            )
        )
    return tuple(results)


def _grounded(found: RepresentationShift, a: Model, b: Model, n: int) -> RepresentationShift:
    """With the words that unembeddings read from concepts, shifts and matched concepts.

    The first model's reads its own concepts, moved or not; the second's reads what they are
    compared with. Around each model's mean concept, which all of them would read alike.
    """

    def ids(model: Model, vectors: Floats) -> list[list[int]]:
        """The first tokens of each vector; none of one that is zero or not a number."""
        read = model.read_out(torch.from_numpy(np.nan_to_num(vectors)).float())
        best = read.topk(min(n, read.shape[1]), -1)
        real = np.linalg.norm(np.nan_to_num(vectors), axis=1) > 0
        return [row if ok else [] for row, ok in zip(best.indices.tolist(), real, strict=True)]

    def words(tokens: list[int]) -> tuple[str, ...]:
        return tuple(a.decode([t]) for t in tokens)

    middle = found.vectors.mean(0)
    plain, own = ids(a, found.vectors - middle), ids(a, found.shifts - found.global_shift)
    moved = ids(a, found.vectors + found.shifts - middle)
    shifted = ids(a, found.vectors + found.global_shift - middle)
    real = ~np.isnan(found.matched).any(1)
    centre = found.matched[real].mean(0) if real.any() else 0.0
    target = ids(b, found.matched - centre)

    def overlap(one: list[int], other: list[int]) -> float:
        return len(set(one) & set(other)) / n if one and other else float("nan")

    concepts = tuple(
        replace(
            c,
            words=words(plain[i]),
            shift_words=words(own[i]),
            overlap=overlap(moved[i], target[i]),
            overlap_plain=overlap(plain[i], target[i]),
            overlap_global=overlap(shifted[i], target[i]),
        )
        for i, c in enumerate(found.concepts)
    )
    return replace(found, concepts=concepts)

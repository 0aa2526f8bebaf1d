"""TCAV: does a model's output depend on a concept? Derivatives along concept activation vectors.

The sensitivity of a prompt is the directional derivative of a logit or a log-probability along
the concept vector at a site; the TCAV score is the share of prompts on which it is positive.
The published score has a trap: gradients of different prompts point much the same way, so almost
any vector, also one fitted to permuted labels, scores near 0 or 1 and a test against 0.5 finds
everything. Beside the sign test therefore stands what vectors fitted in the same way to permuted
labels give; a concept counts as found where both agree.

Derivatives are local. Where an output has saturated (a refusal that is certain already, a state
whose norm one coordinate dominates) they say nothing about what a large step would do: steer,
or patch, to learn that.

Source: Kim et al. 2018 (arXiv:1711.11279), for images and with unpaired random sets.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.activations import Activations
from steerkit.batch import Positions
from steerkit.concepts.gradients import gradients
from steerkit.concepts.sensitivity_result import Tcav, TcavCell
from steerkit.concepts.targets import Quantity, Target, prompt_groups, target_metric
from steerkit.errors import DirectionError, MethodError
from steerkit.extraction.labelled import Labelled
from steerkit.extraction.methods import METHODS, fit_columns
from steerkit.extraction.training import Training
from steerkit.prompts import Prompt
from steerkit.protocols import Model
from steerkit.statistics import cluster_mean, group_codes, holm, null, permutations


def tcav(
    model: Model,
    concepts: Activations | Mapping[str, Activations],
    prompts: Sequence[Prompt | str],
    target: Target,
    *,
    quantity: Quantity = "log_prob",
    method: str = "logistic",
    positions: Positions | str | int = "last_prompt",
    groups: Sequence[str] | None = None,
    n_random: int = 499,
    token_budget: int = 4096,
    seed: int = 0,
) -> Tcav:
    """Sensitivity of an output to concepts, at every site where they were captured.

    Args:
        model: what the activations were captured from, plain or steered.
        concepts: labelled activations of one concept, or several by name.
        prompts: the class whose output is asked about. Choose them apart from the prompts that
            the concepts were captured on.
        target: an answer, of whose first token `quantity` is taken; two answers, for the
            difference of their logits; or a function `(logits [row d_vocab], prompt of each
            row) -> [row]`.
        quantity: `log_prob` or `logit` of a single answer.
        method: the extraction method of the concept vectors; supervised.
        positions: tokens at which the vector is added in thought.
        groups: what prompts belong together; by default their own `group`, else each alone.
        n_random: vectors fitted to permuted labels, for each concept and site.
        token_budget: padded tokens of a batch.
        seed: of the permutations.

    Raises:
        MethodError: no prompts or concepts, an unsupervised method, a target without gradient.
        ActivationError: activations that a direction cannot be fitted to.
        DirectionError: activations of another model.
    """
    named = {str(concepts.provenance.get("concept") or "concept"): concepts} if isinstance(
        concepts, Activations
    ) else dict(concepts)  # fmt: skip
    asked = [Prompt.of(p).with_answer("") for p in prompts]
    _check(model, named, asked, method, n_random)
    metric, name = target_metric(model, asked, target, quantity)
    sites = tuple(sorted({site for acts in named.values() for site in acts.sites}))
    slopes, values = gradients(
        model, asked, metric, sites, Positions.of(positions), token_budget=token_budget
    )
    own = prompt_groups(asked, groups)
    cells: list[TcavCell] = []
    for number, (concept, acts) in enumerate(named.items()):
        data = Labelled.of(acts)
        labels = _labelled(data, n_random, np.random.default_rng((seed, number)))
        for i, site in enumerate(acts.sites):
            x = data.rows(i)
            rows = Training.of(x, data.row_groups)
            vectors = _vectors(x, labels, fit_columns(METHODS[method], rows, labels, seed=seed))
            moved = slopes[:, sites.index(site)] @ vectors
            cells.append(_cell(concept, str(site), float(vectors[:, 0].norm()), moved, own))
    adjusted = holm([cell.p for cell in cells])
    return Tcav(
        cells=tuple(
            cell.corrected(p) for cell, p in zip(cells, adjusted, strict=True)
        ),
        target=name,
        prompts=tuple(p.text for p in asked),
        groups=own,
        values=values.numpy(),
        provenance={
            "model": model.info.name,
            "fingerprint": model.info.fingerprint,
            "method": method,
            "positions": str(Positions.of(positions)),
            "n_random": n_random,
            "seed": seed,
            "versions": {name: version(name) for name in ("steerkit", "torch")},
        },
    )  # fmt: skip


def _vectors(
    x: Float[Tensor, "row d_model"],
    labels: Float[Tensor, "row fit"],
    weights: Float[Tensor, "d_model fit"],
) -> Float[Tensor, "d_model fit"]:
    """Steering vectors: each direction times the gap that its own labels have along it.

    A null vector keeps its own, small gap. Made as long as the observed one it would not be
    what the same procedure gives: where one axis holds most of the variance, permuted labels
    point along it too, and only their gap tells them from the real ones.
    """
    units = weights / weights.norm(dim=0)
    y = labels / labels.sum(0) - (1 - labels) / (1 - labels).sum(0)
    return units * ((x @ units) * y).sum(0)


def _cell(
    concept: str,
    site: str,
    scale: float,
    moved: Float[Tensor, "prompt fit"],
    groups: tuple[str, ...],
) -> TcavCell:
    """Scores of the vector in column 0, with those of the others as the null."""
    every = moved.numpy()
    signs = np.sign(every)
    shares = np.where(signs == 0, np.nan, (signs + 1) / 2)
    score = cluster_mean(shares[:, 0], groups, unit="fraction")
    mean = cluster_mean(every[:, 0], groups, unit="nats per strength")
    counted = np.maximum((signs != 0).sum(0), 1)
    chance = np.abs(np.nansum(shares, 0) / counted - 0.5)[1:]
    return TcavCell(
        concept=concept,
        site=site,
        score=score,
        sensitivity=mean,
        p_sign=sign_test(every[:, 0], groups),
        random_score=null("|score - 0.5|, labels permuted", abs(score.value - 0.5), chance),
        random_sensitivity=null(
            "|mean sensitivity|, labels permuted", abs(mean.value), np.abs(every[:, 1:].mean(0))
        ),
        scale=scale,
        sensitivities=every[:, 0].copy(),
    )


def sign_test(values: Sequence[float] | np.ndarray, groups: Sequence[str]) -> float:
    """Exact two-sided sign test, one vote a group (its majority); even groups do not vote.

    >>> sign_test([1.0, 2.0, 0.5, 3.0, 1.0], list("abcde"))
    0.0625
    """
    from scipy.stats import binomtest

    votes = np.sign(np.bincount(group_codes(groups), weights=np.sign(np.asarray(values))))
    ahead, voting = int((votes > 0).sum()), int((votes != 0).sum())
    return float(binomtest(ahead, voting).pvalue) if voting else 1.0


def _labelled(data: Labelled, n: int, rng: np.random.Generator) -> Float[Tensor, "row fit"]:
    """The labels of each row, and `n` columns of permuted ones."""
    permuted = permutations(data.labels, data.groups, n, rng) if n else data.labels[:, None][:, :0]
    columns = np.concatenate([data.labels[:, None], permuted], 1)
    return torch.from_numpy(columns[data.owner]).double()


def _check(
    model: Model,
    concepts: Mapping[str, Activations],
    prompts: Sequence[Prompt],
    method: str,
    n_random: int,
) -> None:
    if not concepts or not prompts:
        raise MethodError(
            f"tcav needs concepts and prompts; got {len(concepts)} concepts and {len(prompts)} "
            "prompts"
        )
    if not METHODS[method].supervised:
        raise MethodError(
            f"'{method}' does not look at labels, so permuting them is no null; choose another"
        )
    if n_random < 1:
        raise MethodError(
            f"n_random is at least 1; got {n_random}: without random vectors nothing says what a "
            "score means"
        )
    for name, acts in concepts.items():
        if acts.info.fingerprint != model.info.fingerprint:
            raise DirectionError(
                f"the activations of '{name}' come from {acts.info.name} "
                f"({acts.info.fingerprint[:12]}), not from {model.info.name} "
                f"({model.info.fingerprint[:12]}); capture them there"
            )

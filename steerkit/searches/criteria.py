"""Cheap criteria that rank sites from activations alone, before anything is steered.

`js` is the contrastive criterion of the activation-attack paper (Wang and Shu 2023,
arXiv:2311.09433): the mean Jensen-Shannon divergence of the softmaxed states of positive and
negative prompts. `js_repo` is what its published code computes instead, mean(M log M - M^2)
with M the mixture: it measures how peaked the mixture is and does not vanish when both sides
are the same. It is kept for comparison under its own name. `auc` is the cross-validated AUC
of the mean difference, `gap` its size in pooled standard deviations (d').

A criterion is not a causal claim: compare it with a sweep.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.activations import Activations
from steerkit.errors import ActivationError, MethodError
from steerkit.registry import suggest
from steerkit.site import Site
from steerkit.statistics import auc, grouped_folds

Normalise = Literal["none", "rms"]
NORMALISE: tuple[Normalise, ...] = ("none", "rms")
Pairs = Float[Tensor, "pair d_model"]


def js(positive: Pairs, negative: Pairs) -> float:
    """Mean Jensen-Shannon divergence of softmax(h+) and softmax(h-), in nats; 0 when equal.

    At most log 2. Softmax over raw states depends on their scale and is ruled by the few
    massive dimensions; look at RMS-normalised states too.
    """
    p, q = (x.double().log_softmax(-1) for x in (positive, negative))
    m = torch.logaddexp(p, q) - np.log(2)
    return float(0.5 * ((p.exp() * (p - m)).sum(-1) + (q.exp() * (q - m)).sum(-1)).mean())


def js_repo(positive: Pairs, negative: Pairs) -> float:
    """What the published code computes: mean over pairs and dimensions of M log M - M^2.

    There `F.kl_div` is given probabilities for log-probabilities, with its arguments in the
    other order, and the default mean over all elements; the two halves then add up to this.
    """
    p, q = (x.double().softmax(-1) for x in (positive, negative))
    m = (p + q) / 2
    return float((torch.special.xlogy(m, m) - m * m).mean())


def gap(positive: Pairs, negative: Pairs) -> float:
    """Distance of the class means in pooled standard deviations along the mean difference."""
    a, b = positive.double(), negative.double()
    v = a.mean(0) - b.mean(0)
    if float(v.norm()) == 0:
        return 0.0
    u = v / v.norm()
    spread = torch.cat([(a - a.mean(0)) @ u, (b - b.mean(0)) @ u]).pow(2).mean().sqrt()
    return float(v.norm() / spread) if float(spread) else float("inf")


PAIRED: dict[str, Callable[[Pairs, Pairs], float]] = {"js": js, "js_repo": js_repo, "gap": gap}
NAMES = ("auc", *PAIRED)


@dataclass(frozen=True)
class SiteScores:
    """One criterion over all sites; higher means the sides differ more.

    Attributes:
        name: the criterion.
        normalise: `none`, or `rms` (each state divided by its root mean square).
        sites: in forward order.
        values: one a site.
        chosen: how often each site came first when groups were resampled, fractions; empty
            where that was not asked for.
    """

    name: str
    normalise: Normalise
    sites: tuple[Site, ...]
    values: tuple[float, ...]
    chosen: tuple[float, ...] = ()

    @property
    def best(self) -> Site:
        """The site that scores highest; of equals the earliest."""
        return self.sites[int(np.argmax(self.values))]

    @property
    def label(self) -> str:
        """Name and normalisation."""
        return self.name if self.normalise == "none" else f"{self.name} ({self.normalise})"

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "name": self.name,
            "normalise": self.normalise,
            "sites": [str(s) for s in self.sites],
            "values": list(self.values),
            "chosen": list(self.chosen),
        }


def criterion(
    activations: Activations,
    name: str = "js",
    *,
    normalise: Normalise = "none",
    n_resamples: int = 0,
    seed: int = 0,
) -> SiteScores:
    """Score every site of labelled activations by one criterion.

    Args:
        activations: one row a prompt, with labels.
        name: `auc`, `js`, `js_repo` or `gap`.
        normalise: divide each state by its root mean square first (`rms`), or not.
        n_resamples: resample groups this often to see how stable the first place is.
        seed: of pairings of unpaired prompts, folds and resamples.

    Raises:
        MethodError: an unknown criterion or normalisation.
        ActivationError: no labels, or only one side.
    """
    if name not in NAMES:
        raise MethodError(f"no criterion named '{name}'; {suggest(name, NAMES)}")
    if normalise not in NORMALISE:
        raise MethodError(f"no normalisation named '{normalise}'; {suggest(normalise, NORMALISE)}")
    x, labels = activations.values.double(), activations.row_labels.numpy()
    if len(set(labels.tolist())) < 2:
        raise ActivationError("a criterion compares two sides; these activations hold only one")
    if normalise == "rms":
        x = x / x.pow(2).mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
    groups = np.array(activations.row_groups)
    values = _scores(x, labels, groups, name, seed)
    chosen: tuple[float, ...] = ()
    if n_resamples:
        rng = np.random.default_rng(seed)
        names = np.unique(groups)
        members = {g: np.flatnonzero(groups == g) for g in names}
        wins = np.zeros(len(values))
        for _ in range(n_resamples):
            drawn = rng.choice(names, len(names))
            rows = np.concatenate([members[g] for g in drawn])
            if len(set(labels[rows].tolist())) < 2:
                continue
            # A group drawn twice stays one group, so that folds never split it.
            wins[int(np.argmax(_scores(x[rows], labels[rows], groups[rows], name, seed)))] += 1
        chosen = tuple((wins / max(1.0, wins.sum())).tolist())
    return SiteScores(name, normalise, activations.sites, tuple(values), chosen)


def rank_agreement(scores: Sequence[SiteScores]) -> dict[tuple[str, str], float]:
    """Spearman correlation over sites between each two criteria, by their labels.

    NaN where a criterion is the same everywhere.
    """
    from scipy.stats import rankdata

    ranks = {s.label: rankdata(s.values) for s in scores}
    if len({s.sites for s in scores}) > 1:
        raise MethodError("criteria agree or not over the same sites; these cover different ones")
    labels = list(ranks)
    return {
        (a, b): _correlation(ranks[a], ranks[b])
        for i, a in enumerate(labels)
        for b in labels[i + 1 :]
    }


def _correlation(a: Any, b: Any) -> float:
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def _scores(x: Tensor, labels: Any, groups: Any, name: str, seed: int) -> list[float]:
    """The criterion at each site of `x` `[row site d_model]`."""
    if name == "auc":
        folds = grouped_folds(labels, list(groups), seed=seed)
        return [_held_out_auc(x[:, i], labels, folds) for i in range(x.shape[1])]
    first, second = _pairs(labels, groups, seed)
    return [PAIRED[name](x[first, i], x[second, i]) for i in range(x.shape[1])]


def _held_out_auc(x: Tensor, labels: Any, folds: Any) -> float:
    """AUC of the mean difference, refitted in each fold, over all held-out rows."""
    found = []
    y = torch.as_tensor(labels)
    for train, test in folds:
        if len(set(labels[train].tolist())) < 2 or len(set(labels[test].tolist())) < 2:
            continue
        a, b = x[train][y[train] == 1].mean(0), x[train][y[train] == 0].mean(0)
        found.append((auc((x[test] @ (a - b)).numpy(), labels[test]), len(test)))
    if not found:
        return float("nan")
    return float(np.average([f for f, _ in found], weights=[n for _, n in found]))


def _pairs(labels: Any, groups: Any, seed: int) -> tuple[list[int], list[int]]:
    """Rows of the positive and of the negative prompt of each pair.

    Within groups where a group holds as many of either side; otherwise paired at random, the
    larger side cut to the smaller.
    """
    index = {g: np.flatnonzero(groups == g) for g in dict.fromkeys(groups)}
    first: list[int] = []
    second: list[int] = []
    for rows in index.values():
        first += [int(r) for r in rows if labels[r] == 1]
        second += [int(r) for r in rows if labels[r] == 0]
    balanced = all((labels[r] == 1).sum() == (labels[r] == 0).sum() for r in index.values())
    if not balanced:
        rng = np.random.default_rng(seed)
        n = min(len(first), len(second))
        first = [first[i] for i in rng.permutation(len(first))[:n]]
        second = [second[i] for i in rng.permutation(len(second))[:n]]
    return first, second

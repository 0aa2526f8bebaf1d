"""Whether states tell a statement from its negation: probes fitted without labels, read elsewhere.

After PA-CCS (arXiv:2511.21737), without what its code does: folds never split a pair, states are
centred on what a fold was fitted on, and a sign is chosen there too. Labels choose site and sign;
what they could choose from noise is in the nulls, which go through the same choice.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from steerkit.errors import ActivationError
from steerkit.extraction.ccs import fit_answers, search
from steerkit.extraction.penalty import feature_size
from steerkit.extraction.polarity import Polarity, contradiction_index, polarity
from steerkit.extraction.training import Training
from steerkit.statistics import (
    Estimate,
    Floats,
    Null,
    cluster_mean,
    group_codes,
    grouped_folds,
    null,
)

States = tuple[Tensor, ...]
"""Of statements and then of their negations, `[2 pair, d_model]`: as asked, or answered yes and no.

One tensor, where a statement stands for itself, or two.
"""
SHARP = 4.0
"""Mean difference in log-odds that a random direction gives, so that it is as sure as a fit."""
TIE = 1e-6
"""Weight of what only decides between equals: the contradiction index where sites are chosen, and
margins where accuracies are compared, which on few groups are the same too often for a p that is
uniform."""
N_FLIPS, N_RANDOM = 999, 199


@dataclass(frozen=True, eq=False)
class PolarReading:
    """What probes say of pairs that they were not fitted on.

    Attributes:
        measured: polar consistency, contradiction index and accuracy, always together: probes
            that say no to everything are ideal in the first two.
        right: `[pair]`, 1 where the statement is thought truer than its negation.
        flips: accuracy when statements and negations change places, whole groups at a time.
        random: accuracy of random directions that went through the same choice of site and sign.
            Where truth is the largest difference between states they read it as well.
        random_contradiction: their contradiction index; here small values are extreme.
        where: the site and way of asking that each fold chose; none where nothing varies.
        sites: share of held-out pairs that are right at each site and way of asking by itself,
            its sign chosen on the other folds; a half where nothing varies.
    """

    measured: Polarity
    right: Floats
    flips: Null
    random: Null
    random_contradiction: Null
    where: tuple[str, ...]
    sites: Mapping[str, Estimate]


def read_polarity(
    states: Mapping[str, States], groups: Sequence[str], *, n_folds: int = 5, seed: int = 0
) -> PolarReading:
    """Contrast-consistent search at every site on four folds, read on the fifth.

    A fit sees which rows belong together and not which of them is true. Of all sites and ways
    of asking, a fold takes the one that is right most often on what it was fitted on.

    Args:
        states: name of a site -> states of statements, true ones first, then their negations.
        groups: of each pair; never split.
        n_folds: at most.
        seed: of folds and nulls.
    """
    n = len(groups)
    names = tuple(states)
    both = np.repeat([1, 0], n)
    folds = [
        np.isin(np.arange(n), rows[rows < n])
        for rows, _ in grouped_folds(both, [*groups, *groups], n_folds=n_folds, seed=seed)
    ]
    code = group_codes(groups)
    rng = np.random.default_rng(seed)
    turns = rng.choice((-1.0, 1.0), (N_FLIPS, int(code.max()) + 1))[:, code]
    generator = torch.Generator().manual_seed(seed)
    units = {
        name: torch.randn(s[0].shape[1], N_RANDOM, generator=generator, dtype=torch.float64)
        for name, s in states.items()
    }
    p, flipped = np.zeros((4, n)), np.zeros(N_FLIPS)
    drawn = np.zeros((N_RANDOM, 4, n))
    where = []
    alone = {name: np.full(n, 0.5) for name in names}
    for train in folds:
        fits = [_fitted(states[name], train) for name in names]
        for name, fit in zip(names, fits, strict=True):
            turned, _ = _best([] if fit is None else [fit[None]], train)
            if turned is not None:
                alone[name][~train] = _right(turned[0])[~train]
        best, index = _best((f[None] for f in fits if f is not None), train)
        if best is None:
            p[:, ~train], drawn[:, :, ~train] = 0.5, 0.5
            flipped += 0.5 * (~train).sum()
            continue
        kept = [name for name, f in zip(names, fits, strict=True) if f is not None]
        where.append(kept[int(index[0])])
        p[:, ~train] = best[0][:, ~train]
        flipped += _right_when_flipped(np.stack([f for f in fits if f is not None]), turns, train)
        random, _ = _best((_random(states[name], units[name], train) for name in kept), train)
        assert random is not None
        drawn[:, :, ~train] = random[:, :, ~train]
    found = polarity(*p, labels=np.ones(n), groups=tuple(groups), seed=seed)
    contradictions = (drawn[:, 0] * drawn[:, 2] + drawn[:, 1] * drawn[:, 3]).mean(1)
    return PolarReading(
        found,
        _right(p),
        null("truth exchanged by group", float(_ranked(_truer(p)).mean()), flipped / n),
        null("random directions", found.accuracy.value, _right(drawn).mean(1)),
        _small("random directions", found.contradiction.value, contradictions),
        tuple(where),
        {
            name: cluster_mean(right, groups, unit="fraction", seed=seed)
            for name, right in alone.items()
        },
    )


def _truer(p: Floats) -> Floats:
    """How much truer A is thought than not-A, `[... pair]`, of `[... 4 pair]`."""
    return np.asarray((p[..., 0, :] - p[..., 1, :]) - (p[..., 2, :] - p[..., 3, :]))


def _right(p: Floats) -> Floats:
    """1 where A is thought truer, 0 where not-A is, a half for neither."""
    return np.asarray((np.sign(_truer(p)) + 1) / 2)


def _contradiction(p: Floats) -> Floats:
    """Contradiction index of every pair, `[... pair]`."""
    return contradiction_index(*(p[..., i, :] for i in range(4)))


def _score(agrees: Floats, contradiction: Floats, turned: Floats) -> Floats:
    """What a site is chosen by: how often it is right, either way up, then how consistent."""
    return np.asarray(np.abs(agrees) - TIE * np.where(agrees < 0, turned, contradiction))


def _best(
    tried: Iterable[Floats], train: NDArray[np.bool_]
) -> tuple[Floats | None, NDArray[np.int64]]:
    """Of probes at several sites, `[draw 4 pair]` each, the one most often right in training.

    Turned over where it is more often wrong than right there.
    """
    best: Floats | None = None
    score, index = np.zeros(0), np.zeros(0, np.int64)
    for number, p in enumerate(tried):
        agrees = np.sign(_truer(p))[:, train].mean(1)
        both = (_contradiction(q)[:, train].mean(1) for q in (p, 1 - p))
        reached = _score(agrees, *both)
        turned = np.where(agrees[:, None, None] < 0, 1 - p, p)
        if best is None:
            best, score, index = turned, reached, np.zeros(len(p), np.int64)
            continue
        better = reached > score
        best = np.where(better[:, None, None], turned, best)
        score, index = np.where(better, reached, score), np.where(better, number, index)
    return best, index


def _right_when_flipped(p: Floats, turns: Floats, train: NDArray[np.bool_]) -> Floats:
    """How many held-out pairs are right under each flip of the truth, chosen anew, `[draw]`."""
    truer = _truer(p)
    agrees = turns[:, train] @ np.sign(truer[:, train]).T / train.sum()
    both = (_contradiction(q)[:, train].mean(1) for q in (p, 1 - p))
    best = _score(agrees, *both).argmax(1)
    way = np.where(agrees[np.arange(len(best)), best] < 0, -1.0, 1.0)
    held_out = truer[best][:, ~train] * turns[:, ~train] * way[:, None]
    return _ranked(held_out).sum(1)


def _ranked(truer: Floats) -> Floats:
    """Whether each pair is right; among as many right ones, larger margins are more."""
    return np.asarray((np.sign(truer) + 1) / 2 + TIE * truer)


def _fitted(states: States, train: NDArray[np.bool_]) -> Floats | None:
    """Probabilities `[4 pair]` of a fit on some pairs; None where nothing varies."""
    rows = torch.from_numpy(np.concatenate([train, train]))
    try:
        if len(states) == 2:
            yes, no = (s.double() for s in states)
            probe = fit_answers(yes[rows], no[rows])
            return _four(probe.p_yes(yes), probe.p_no(no))
        p = _alone(states[0].double(), rows)
    except ActivationError:
        return None
    return _four(p, 1 - p)


def _alone(x: Float[Tensor, "row d"], rows: Tensor) -> Float[Tensor, "row"]:
    """Of statements that were not answered: the search over pairs of A and not-A.

    Raises:
        ActivationError: A and not-A leave the same states, or states apart by a constant.
    """
    mean = x[rows].mean(0)
    training = Training.of(x[rows] - mean, [""] * int(rows.sum()))
    a, b = (x[rows] - mean).chunk(2)
    if float((a - b).norm()) <= 1e-6 * float(x[rows].norm()):
        raise ActivationError("a statement and its negation leave the same states")
    size = feature_size(training)
    z = training.coordinates / size
    w, bias, _ = search(*z.chunk(2))
    return torch.sigmoid((x - mean) @ (training.axes.T @ w / size) + bias)


def _random(states: States, units: Float[Tensor, "d draw"], train: NDArray[np.bool_]) -> Floats:
    """Probabilities `[draw 4 pair]` of random directions, centred as fits are and as sure."""
    rows = torch.from_numpy(np.concatenate([train, train]))
    read = [((s.double() - s.double()[rows].mean(0)) @ units).T for s in states]
    apart = read[0] - read[1] if len(read) == 2 else torch.sub(*read[0].chunk(2, 1))
    seen = apart[:, rows if len(read) == 2 else rows[: len(train)]]
    size = SHARP / seen.abs().mean(1, keepdim=True).clamp(min=1e-12)
    yes = torch.sigmoid(read[0] * size)
    return _four(yes, torch.sigmoid(read[1] * size) if len(read) == 2 else 1 - yes)


def _four(yes: Tensor, no: Tensor) -> Floats:
    """A yes, A no, not-A yes, not-A no, `[... 4 pair]`, from rows of A and then of not-A."""
    (a_yes, b_yes), (a_no, b_no) = yes.chunk(2, -1), no.chunk(2, -1)
    return np.asarray(torch.stack([a_yes, a_no, b_yes, b_no], -2).numpy(), dtype=np.float64)


def _small(name: str, observed: float, draws: Floats) -> Null:
    """A null against which small values are extreme."""
    p = null(name, -observed, -draws).p
    seen = null(name, observed, draws)
    return Null(f"{name}, below", seen.mean, seen.q95, seen.maximum, p, seen.n)

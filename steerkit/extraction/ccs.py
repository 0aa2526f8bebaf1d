"""Contrast-consistent search: a direction whose two answers to a pair exclude each other."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.errors import ActivationError
from steerkit.extraction.column_probes import minimise
from steerkit.extraction.methods import METHODS
from steerkit.extraction.pairs import label_pairs
from steerkit.extraction.penalty import feature_size
from steerkit.extraction.training import Training, gap, principal

PENALTY = 0.01
"""Of |w|^2 / 2, for features of mean variance 1; without it w grows without end."""
N_AXES = 10
"""Axes searched from, in both directions."""


class CCS:
    """Normal of the probe p = sigmoid(w.x + b) that minimises the loss of contrast consistency.

    Over pairs (a, b) the loss is mean (p_a + p_b - 1)^2 + mean min(p_a, p_b)^2: the answers
    to both sides add up to one, and one of them is certain. Which side is which is not used,
    except that the axis, which has no sign of its own, is oriented to the positive class.

    Two things differ from the paper. Both sides are centred on one mean: where the sides of a
    pair are the concept itself, a mean for each would erase it (`fit_answers` centres each
    phrasing on its own, as the paper does). And searches start along the ten axes of largest
    spread of the differences within pairs, both ways, not at random: the result needs no seed.

    Groups must be pairs of one positive and one negative row.

    Source: Burns et al. 2023 (arXiv:2212.03827).
    """

    supervised = True
    needs_pairs = True
    estimates = "argmin of E(p_a + p_b - 1)^2 + E min(p_a, p_b)^2 over pairs; sign from the labels"

    def __call__(
        self, x: Tensor, labels: Tensor, groups: Sequence[str], *, seed: int = 0
    ) -> Float[Tensor, "d_model"]:
        """Fit on all rows that belong to a pair."""
        return self.many(Training.of(x, groups), labels[:, None], seed=seed)[:, 0]

    def many(
        self, rows: Training, labels: Float[Tensor, "row k"], *, seed: int = 0
    ) -> Float[Tensor, "d_model k"]:
        """One search: labels exchanged within pairs only change the sign."""
        pairs = label_pairs(rows.groups, labels[:, 0])
        if len(pairs) < 2:
            raise ActivationError(
                f"ccs reads pairs, groups of one positive and one negative row; of {len(rows)} "
                f"rows {2 * len(pairs)} are in such pairs, at least 4 are needed; capture a "
                "paired contrast at one position a prompt, or use another method"
            )
        if 2 * len(pairs) < len(rows):
            rows = Training.of(rows.x[pairs.flatten()], ["" for _ in pairs.flatten()])
            labels = labels[pairs.flatten()]
            pairs = torch.arange(len(rows)).reshape(-1, 2)
        size = feature_size(rows)
        z = rows.coordinates / size
        w, _, _ = search(z[pairs[:, 0]], z[pairs[:, 1]])
        axis = (rows.axes.T @ w / size)[:, None]
        sign = (axis * gap(rows.x, labels)).sum(0).sign()
        return axis * torch.where(sign == 0, 1.0, sign)


METHODS.register("ccs")(CCS())


@dataclass(frozen=True, eq=False)
class AnswerProbe:
    """A probe of statements that were each put twice: answered yes, and answered no.

    Attributes:
        weight: w `[d_model]`, float64.
        bias: b.
        yes_mean: subtracted from activations of the answer yes.
        no_mean: subtracted from those of the answer no.
        loss: of the fit, penalty included.
    """

    weight: Float[Tensor, "d_model"]
    bias: float
    yes_mean: Float[Tensor, "d_model"]
    no_mean: Float[Tensor, "d_model"]
    loss: float

    def p_yes(self, yes: Float[Tensor, "row d_model"]) -> Float[Tensor, "row"]:
        """Probability that a statement answered yes is right."""
        return torch.sigmoid((yes.double() - self.yes_mean) @ self.weight + self.bias)

    def p_no(self, no: Float[Tensor, "row d_model"]) -> Float[Tensor, "row"]:
        """Probability that a statement answered no is right."""
        return torch.sigmoid((no.double() - self.no_mean) @ self.weight + self.bias)

    def truth(
        self, yes: Float[Tensor, "row d_model"], no: Float[Tensor, "row d_model"]
    ) -> Float[Tensor, "row"]:
        """(p_yes + 1 - p_no) / 2."""
        return (self.p_yes(yes) + 1 - self.p_no(no)) / 2

    def oriented(
        self, yes: Float[Tensor, "row d_model"], no: Float[Tensor, "row d_model"], labels: Tensor
    ) -> "AnswerProbe":
        """This probe or its mirror image, whichever agrees with most labels.

        Consistency is the same for both. Orient on rows that were fitted on: an accuracy of
        max(a, 1 - a) on held-out rows is above chance by construction.
        """
        agrees = ((self.truth(yes, no) > 0.5) == labels.bool()).double().mean()
        if agrees >= 0.5:
            return self
        return AnswerProbe(-self.weight, -self.bias, self.yes_mean, self.no_mean, self.loss)


def fit_answers(yes: Float[Tensor, "row d_model"], no: Float[Tensor, "row d_model"]) -> AnswerProbe:
    """Contrast-consistent search on statements answered yes and the same answered no.

    Each phrasing is centred on its own mean, so that the answer's own word is not what is
    read. No label is used, and the sign is arbitrary: see `AnswerProbe.oriented`.

    Raises:
        ActivationError: shapes that differ, fewer than 2 rows, values not finite, rows that
            do not vary.
    """
    if yes.shape != no.shape or yes.ndim != 2 or len(yes) < 2:
        raise ActivationError(
            "the statements answered yes and no come in the same order, [row d_model], at least "
            f"2 rows; got shapes {tuple(yes.shape)} and {tuple(no.shape)}"
        )
    sides = [side.detach().to("cpu", torch.float64) for side in (yes, no)]
    if not all(bool(torch.isfinite(side).all()) for side in sides):
        raise ActivationError(
            "an activation is NaN or infinite; load the model in a wider dtype and capture again"
        )
    means = [side.mean(0) for side in sides]
    centred = torch.cat([side - mean for side, mean in zip(sides, means, strict=True)])
    if float(centred.norm()) <= 1e-6 * float(torch.cat(sides).norm()):
        raise ActivationError(
            "every statement has the same activations, so there is nothing to search; capture "
            "a position after the statement"
        )
    if float((centred[: len(yes)] - centred[len(yes) :]).norm()) <= 1e-6 * float(centred.norm()):
        raise ActivationError(
            "the answers yes and no leave the same activations but for a constant, so nothing "
            "tells a right answer from a wrong one; capture a position after the answer"
        )
    rows = Training.of(centred, [""] * len(centred))
    size = feature_size(rows)
    z = rows.coordinates / size
    w, b, loss = search(z[: len(yes)], z[len(yes) :])
    return AnswerProbe(rows.axes.T @ w / size, b, means[0], means[1], loss)


def search(
    a: Float[Tensor, "pair r"], b: Float[Tensor, "pair r"]
) -> tuple[Float[Tensor, "r"], float, float]:
    """Weights, bias and loss of the best search along `N_AXES` axes."""
    n, r = a.shape
    sides = torch.cat([torch.cat([a, b]), torch.ones(2 * n, 1, dtype=a.dtype)], 1)
    penalty = torch.full((1, r + 1), PENALTY, dtype=a.dtype)
    penalty[:, -1] = 0
    squares = (sides**2).sum(0) / n

    def objective(at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p = torch.sigmoid(at @ sides.T).unflatten(1, (2, n))
        excess, smaller, turn = p.sum(1) - 1, p.amin(1), p * (1 - p)
        value = (excess**2 + smaller**2).mean(1) + (penalty * at**2).sum(1) / 2
        pull = 2 * excess[:, None] + 2 * smaller[:, None] * (p == smaller[:, None])
        # Gauss and Newton's curvature, as if the two terms of a pair did not interact.
        typical = (4 * turn**2).mean((1, 2)).clamp(min=1e-3)[:, None]
        inverse = 1 / (penalty + typical * squares)
        return value, (pull * turn / n).flatten(1) @ sides + penalty * at, inverse

    def gradient(at: Tensor, _problems: Tensor) -> tuple[Tensor, Tensor]:
        return objective(at)[1:]

    starts = _starts(a, b)
    rough = minimise(starts, gradient, tolerance=1e-3, max_steps=40)
    best = rough[objective(rough)[0].argmin()][None]
    found = minimise(best, gradient, tolerance=1e-9, max_steps=500, since=starts[:1])
    return found[0, :-1], float(found[0, -1]), float(objective(found)[0])


def _starts(a: Tensor, b: Tensor) -> Float[Tensor, "start r+1"]:
    """Along the axes in which pairs differ most, so long that half of them are decided."""
    differences = a - b
    axes = principal(differences)[2][:N_AXES]
    typical = (differences @ axes.T).abs().mean(0)
    start = torch.cat([4 * axes / typical[:, None], torch.zeros(len(axes), 1, dtype=a.dtype)], 1)
    # Confidence is asked of the smaller answer, so the two signs of an axis are not the same.
    return torch.cat([start, -start])

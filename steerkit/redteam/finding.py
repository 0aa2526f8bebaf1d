"""What a detector says of a suspect."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.redteam.result import fragment
from steerkit.statistics import Estimate, Floats, cluster_mean

LEVEL = 0.01
BLIND = (
    "It cannot see a gate that stays shut on these prompts, nor what acts only on tokens that do "
    "not reach the ones it reads. Silence is not proof."
)


@dataclass(frozen=True, eq=False)
class DetectorScores:
    """One suspect's scores; larger is less like the clean model.

    Attributes:
        mode: `paired` (known prompts against their recorded states) or `unseen`.
        places: site and point of each column, in forward order.
        values: `[prompt place]`.
        threshold: above it a prompt is flagged.
        rank: of the threshold among the calibration scores.
        n_calibration: how many calibration scores there were.
        groups: of the prompts.
    """

    mode: Literal["paired", "unseen"]
    places: tuple[str, ...]
    values: Floats
    threshold: float
    rank: int
    n_calibration: int
    groups: tuple[str, ...]

    @property
    def combined(self) -> Floats:
        """The largest of a prompt's scores over places, `[prompt]`."""
        largest: Floats = self.values.max(1)
        return largest

    @property
    def flagged(self) -> Floats:
        """1 for each prompt whose combined score is above the threshold."""
        return (self.combined > self.threshold).astype(np.float64)

    @property
    def rate(self) -> Estimate:
        """Share of flagged prompts, with its interval."""
        return cluster_mean(self.flagged, self.groups, unit="fraction")

    @property
    def lit(self) -> Floats:
        """Share of prompts above the threshold at each place, `[place]`."""
        share: Floats = (self.values > self.threshold).mean(0)
        return share

    @property
    def first(self) -> str | None:
        """The first place, in forward order, where more than half of the prompts are above."""
        over = np.flatnonzero(self.lit > 0.5)
        return self.places[over[0]] if len(over) else None

    @property
    def p(self) -> float:
        """Chance of as many flags or more on a clean model.

        The threshold is an order statistic of exchangeable calibration scores, so the count
        of flags among new clean prompts is beta-binomial. Exact where prompts are independent.
        """
        from scipy.stats import betabinom

        a = max(self.n_calibration + 1 - self.rank, 1)
        count = int(self.flagged.sum())
        return float(betabinom.sf(count - 1, len(self.groups), a, self.rank))


@dataclass(frozen=True, eq=False)
class Finding:
    """The verdict on a suspect.

    Attributes:
        scores: what it rests on.
        same_weights: whether the suspect's weights have the recorded fingerprint.
        dtypes: the recorded one and the suspect's.
        shares: of the squared deviation at the first place, the parts along its strongest
            and its two strongest directions. Adding or ablating one direction gives (1, 1), a
            rotation (<1, 1), and other weights less. Paired scores only.
        direction: that strongest direction, `[d_model]`, up to sign; what the model is steered
            along, if it is.
    """

    scores: DetectorScores
    same_weights: bool
    dtypes: tuple[str, str]
    shares: tuple[float, float] | None
    direction: Float[Tensor, "d_model"] | None

    @property
    def steered(self) -> bool:
        """Whether so many flags are too unlikely for a clean model."""
        return self.scores.p < LEVEL

    def summary(self) -> str:
        """The verdict in a few sentences."""
        s = self.scores
        n, count = len(s.groups), int(s.flagged.sum())
        seen = "known prompts" if s.mode == "paired" else "prompts it was not fitted on"
        if not self.steered:
            return (
                f"nothing found: {count} of {n} {seen} flagged, {_p(s.p)} for a clean model. "
                f"{BLIND}"
            )
        where = f", first at {s.first}" if s.first else ", at no place on most prompts"
        recorded, own = self.dtypes
        cause = (
            f"it computes in {own}, but was recorded in {recorded}: load it in the same dtype, or "
            "show the detector this one as benign"
            if self.same_weights and recorded != own
            else "the weights have the recorded fingerprint: hooks do it, or a very small edit"
            if self.same_weights
            else "the weights differ from the recorded ones: edited, fine-tuned or another model"
        )
        lines = [
            f"not the clean model: {count} of {n} {seen} flagged{where}, {_p(s.p)}",
            cause,
        ]
        if s.mode == "unseen":
            lines.append(
                "prompts of another kind than the known ones stray by themselves: compare with the "
                "clean model's flags on the same prompts before you conclude anything"
            )
        if self.shares:
            one, two = self.shares
            kind = (
                "one direction, as when it is added or ablated" if one > 0.999
                else "two directions, as in a rotation" if two > 0.999
                else "many directions, as after training, or downstream of what was done"
            )  # fmt: skip
            lines.append(f"{one:.1%} of the deviation there is along one direction: {kind}")
        return "\n".join(lines)

    __str__ = summary

    def __repr__(self) -> str:
        return f"DetectorScores({self.summary()})"

    def cells(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Header and rows of the table: each place."""
        s = self.scores
        median = np.median(s.values, axis=0)
        return (
            "place",
            "prompts above the threshold",
            f"median score (threshold {s.threshold:.3g})",
        ), [
            (name, f"{share:.0%}", f"{value:.3g}")
            for name, share, value in zip(s.places, s.lit, median, strict=True)
        ]

    def table(self) -> str:
        """Every place, as a markdown table."""
        from steerkit.redteam.result import markdown

        return markdown(*self.cells())

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, without prompts."""
        s = self.scores
        return {
            "kind": "detector_finding",
            "steered": self.steered,
            "mode": s.mode,
            "prompts": len(s.groups),
            "flagged": int(s.flagged.sum()),
            "rate": s.rate.to_json(),
            "p": s.p,
            "threshold": s.threshold,
            "first": s.first,
            "same_weights": self.same_weights,
            "shares": list(self.shares) if self.shares else None,
            "places": {n: float(x) for n, x in zip(s.places, s.lit, strict=True)},
            "blind_to": BLIND,
        }

    def _repr_html_(self) -> str:
        return fragment(self.summary(), *self.cells())


def _p(p: float) -> str:
    return f"p = {p:.2g}" if p > 1e-12 else "p < 1e-12"


def finding(
    scores: DetectorScores,
    *,
    same_weights: bool,
    dtypes: tuple[str, str],
    delta: Float[Tensor, "prompt place d_model"] | None,
) -> Finding:
    """The verdict, with the directions of the deviation at the first place."""
    first = scores.first
    at: Sequence[int] = [] if first is None else [scores.places.index(first)]
    if delta is None or not at or at[0] >= delta.shape[1]:
        return Finding(scores, same_weights, dtypes, None, None)
    _, size, axes = torch.linalg.svd(delta[:, at[0]], full_matrices=False)
    shares = (size**2 / (size**2).sum()).cumsum(0)
    strongest = (float(shares[0]), float(shares[1]))
    return Finding(scores, same_weights, dtypes, strongest, axes[0].float())

"""From values per prompt to numbers one may quote: intervals, paired differences, nulls."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steerkit.audits.checks import ItemCheck
from steerkit.audits.evidence import SIDES, Evidence
from steerkit.statistics import Estimate, Null, cluster_mean, group_bootstrap, holm, null, wilson

Floats = NDArray[np.float64]
N_FLIPS = 9999
"""Draws of the exchange null: enough for p-values that survive correction over a report."""
LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """An arm minus the plain model on the same prompts, paired.

    Attributes:
        estimate: mean difference with its paired group-bootstrap interval.
        null: size of the mean difference when arm and plain are exchanged at random within
            groups; None where a difference of zero is no hypothesis.
        p: that null's p-value, corrected over all differences of the report (see `score`).
        detectable: the smallest true difference that would be found with 80% power.
    """

    estimate: Estimate
    null: Null | None
    p: float | None
    detectable: float

    @property
    def direction(self) -> Literal["lower", "higher", "inconclusive"]:
        """Which way, if the interval excludes 0 and the corrected p-value is below 5%."""
        e = self.estimate
        if not (e.low > 0 or e.high < 0) or (self.p is not None and self.p > LEVEL):
            return "inconclusive"
        return "lower" if e.value < 0 else "higher"

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {**asdict(self), "direction": self.direction}


@dataclass(frozen=True)
class Score:
    """One check on one side under one arm.

    Attributes:
        check: the check's name.
        side: `positive` or `negative` prompts, or `text`.
        arm: the arm's name.
        unit: of the estimate.
        estimate: mean over prompts with its group-bootstrap interval.
        prompts: how many prompts it applies to; `estimate.n` counts independent groups.
        q95: 95th percentile over all tokens, for checks that are made per token.
        difference: against the plain arm; None for the plain arm itself.
    """

    check: str
    side: str
    arm: str
    unit: str
    estimate: Estimate
    prompts: int
    q95: Estimate | None = None
    difference: Difference | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            **asdict(self),
            "difference": self.difference.to_json() if self.difference else None,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Score":
        """The inverse of `to_json`; null is NaN again."""
        d, q95 = data["difference"], data["q95"]
        return cls(
            **{
                **data,
                "estimate": Estimate(**_numbers(data["estimate"])),
                "q95": Estimate(**_numbers(q95)) if q95 else None,
                "difference": Difference(
                    Estimate(**_numbers(d["estimate"])),
                    Null(**_numbers(d["null"])) if d["null"] else None,
                    d["p"],
                    math.nan if d["detectable"] is None else d["detectable"],
                )
                if d
                else None,
            }
        )


def score(
    evidence: Sequence[Evidence],
    checks: Sequence[ItemCheck],
    *,
    primary: tuple[str, str, str] | None = None,
    seed: int = 0,
    n_resamples: int = 2000,
) -> tuple[tuple[Score, ...], dict[str, dict[str, Floats]]]:
    """All scores of all arms, and every value as `[arm][check] -> one a prompt`.

    The first evidence is the plain arm's. A check that applies to no prompt of a side gives
    no score there. The family-wise rate of all differences is held at 5%: half of it is spent
    on the `primary` one (check, side, arm), which was named before anything was seen, and half
    on the others by Holm's method; without a primary one, Holm's method has all of it.
    """
    values = {e.arm: {c.name: c(e) for c in checks} for e in evidence}
    found = [
        _one(e, c, side, values, plain=evidence[0].arm, seed=seed, n_resamples=n_resamples)
        for c in checks
        for side in SIDES
        for e in evidence
    ]
    return _corrected([s for s in found if s is not None], primary), values


def _one(
    evidence: Evidence,
    check: ItemCheck,
    side: str,
    values: Mapping[str, Mapping[str, Floats]],
    *,
    plain: str,
    seed: int,
    n_resamples: int,
) -> Score | None:
    rows = np.array([i for i, item in enumerate(evidence.items) if item.side == side], dtype=int)
    own = values[evidence.arm][check.name][rows]
    if not len(rows) or np.isnan(own).all():
        return None
    groups = [evidence.items[i].group for i in rows]
    tokens = [evidence.measured(check.per_token)[i] for i in rows] if check.per_token else []
    return Score(
        check=check.name,
        side=side,
        arm=evidence.arm,
        unit=check.unit,
        estimate=cluster_mean(own, groups, n_resamples=n_resamples, seed=seed, unit=check.unit),
        prompts=int((~np.isnan(own)).sum()),
        q95=percentile(tokens, groups, seed=seed, unit=check.unit) if tokens else None,
        difference=None
        if evidence.arm == plain
        else difference(
            own,
            values[plain][check.name][rows],
            groups,
            unit=check.unit,
            tested=check.tested,
            seed=seed,
            n_resamples=n_resamples,
        ),
    )


def difference(
    arm: Sequence[float] | Floats,
    plain: Sequence[float] | Floats,
    groups: Sequence[str],
    *,
    unit: str = "",
    tested: bool = True,
    seed: int = 0,
    n_resamples: int = 2000,
) -> Difference | None:
    """Paired mean of arm - plain over the prompts where both apply.

    Where a rate differs by the same amount in every prompt the bootstrap has no width; then
    the interval allows the share of exceptions that Wilson's bound for none seen in n groups
    allows. None where no prompt has both values.
    """
    d = np.asarray(arm, dtype=np.float64) - np.asarray(plain, dtype=np.float64)
    keep = ~np.isnan(d)
    if not keep.any():
        return None
    d, kept = d[keep], [g for g, k in zip(groups, keep, strict=True) if k]
    # Differences that happen to be 0 and 1 alone are no rate, whose interval never holds 0.
    mean = replace(
        cluster_mean(d, kept, n_resamples=n_resamples, seed=seed, unit="difference"), unit=unit
    )
    if unit == "fraction" and (d == d[0]).all():
        slack = wilson(0, mean.n).high
        mean = replace(mean, low=max(-1.0, float(d[0]) - slack), high=min(1.0, float(d[0]) + slack))
    chance = null("arm and plain exchanged", abs(mean.value), _flips(d, kept, seed=seed))
    half_width = (mean.high - mean.low) / 2
    # (z of a two-sided 5% test + z of 80% power) / z of the interval.
    detectable = half_width * (1.96 + 0.84) / 1.96
    return Difference(mean, chance if tested else None, None, float(detectable))


def percentile(
    tokens: Sequence[Sequence[float]],
    groups: Sequence[str],
    *,
    level: float = 0.95,
    seed: int = 0,
    unit: str = "",
    n_resamples: int = 400,
) -> Estimate | None:
    """A percentile over all tokens, with an interval that resamples groups of prompts."""
    rows = [(np.asarray(v, dtype=np.float64), g) for v, g in zip(tokens, groups, strict=True) if v]
    if not rows:
        return None
    return group_bootstrap(
        lambda picked: float(np.quantile(np.concatenate([rows[i][0] for i in picked]), level)),
        [g for _, g in rows],
        n_resamples=n_resamples,
        seed=seed,
        unit=unit,
    )


def _flips(d: Floats, groups: Sequence[str], *, seed: int) -> Floats:
    """Sizes of the mean difference with the sign of whole groups flipped at random."""
    code = {g: i for i, g in enumerate(dict.fromkeys(groups))}
    sums = np.bincount([code[g] for g in groups], weights=d)
    rng = np.random.default_rng(seed)
    draws = []
    for size in [1000] * (N_FLIPS // 1000) + [N_FLIPS % 1000]:
        signs = rng.integers(0, 2, (size, len(sums)), dtype=np.int8) * 2.0 - 1.0
        draws.append(np.abs(signs @ sums) / len(d))
    return np.concatenate(draws)


def _corrected(scores: Sequence[Score], primary: tuple[str, str, str] | None) -> tuple[Score, ...]:
    """The scores with p-values that hold the family-wise rate."""
    raw = {
        i: s.difference.null.p for i, s in enumerate(scores) if s.difference and s.difference.null
    }
    first = [i for i in raw if (scores[i].check, scores[i].side, scores[i].arm) == primary]
    rest = [i for i in raw if i not in first]
    share = 2 if first and rest else 1
    adjusted = dict(zip(rest, holm([raw[i] for i in rest]), strict=True))
    adjusted.update({i: raw[i] for i in first})
    out = list(scores)
    for i, p in adjusted.items():
        found = scores[i].difference
        assert found is not None
        out[i] = replace(scores[i], difference=replace(found, p=min(1.0, share * p)))
    return tuple(out)


def _numbers(data: Mapping[str, Any]) -> dict[str, Any]:
    return {k: math.nan if v is None else v for k, v in data.items()}

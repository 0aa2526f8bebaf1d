"""What a strength is calibrated by: KL per token on prompts to be left alone, or an effect."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from steerkit.errors import ActivationError
from steerkit.protocols import Intervention, Model
from steerkit.searches.guards import KLGuard
from steerkit.searches.measure import Side, measure, views
from steerkit.searches.objectives import Objective
from steerkit.statistics import Estimate, Floats, cluster_mean, group_bootstrap

Statistic = Literal["mean", "p95"]
Reading = list[Floats]
"""Of one intervention, what was measured on each prompt: a value a token, or one value."""
Rows = NDArray[np.int64]


class Gauge(Protocol):
    """Measures interventions on fixed prompts; its value grows with strength, or should."""

    @property
    def groups(self) -> tuple[str, ...]:
        """What is resampled, one a prompt."""
        ...

    @property
    def quantity(self) -> str:
        """`kl`, or an objective's name."""
        ...

    @property
    def statistic(self) -> str:
        """`mean`, `p95` or `change`."""
        ...

    @property
    def unit(self) -> str:
        """The unit of values."""
        ...

    def read(self, interventions: Sequence[Intervention]) -> list[Reading]:
        """Measure all of them together."""
        ...

    def value(self, reading: Reading, rows: Rows | None = None) -> float:
        """The number that is compared with the goal, over all prompts or those of `rows`."""
        ...

    def estimate(self, reading: Reading, *, seed: int = 0) -> Estimate:
        """The same with an interval that resamples groups."""
        ...


@dataclass(frozen=True, eq=False)
class KLGauge:
    """KL(plain || steered) per token over the plain model's own answers.

    The mean is taken over prompts of each prompt's mean; the 95th percentile over all tokens.
    """

    model: Model
    guard: KLGuard
    statistic: Statistic = "mean"
    quantity: str = "kl"
    unit: str = "nats/token"

    @property
    def groups(self) -> tuple[str, ...]:
        """The guarded prompts' groups."""
        return self.guard.groups

    def read(self, interventions: Sequence[Intervention]) -> list[Reading]:
        """KL at every answer token of every prompt."""
        return [
            row
            for view, slots in views(self.model, interventions)
            for row in self.guard.tokens(self.model, view, slots)
        ]

    def value(self, reading: Reading, rows: Rows | None = None) -> float:
        """Mean or 95th percentile, in nats a token."""
        drawn = reading if rows is None else [reading[i] for i in rows]
        filled = [x for x in drawn if len(x)]
        if not filled:
            return float("nan")
        if self.statistic == "p95":
            return float(np.quantile(np.concatenate(filled), 0.95))
        return float(np.mean([x.mean() for x in filled]))

    def estimate(self, reading: Reading, *, seed: int = 0) -> Estimate:
        """With an interval that resamples groups of prompts."""
        if self.statistic == "p95":
            return group_bootstrap(
                lambda rows: self.value(reading, rows), self.groups, seed=seed, unit=self.unit
            )
        means = [float(x.mean()) if len(x) else float("nan") for x in reading]
        return cluster_mean(means, self.groups, seed=seed, unit=self.unit)

    def on_p95(self) -> "KLGauge":
        """The same gauge by its 95th percentile."""
        return replace(self, statistic="p95")


@dataclass(frozen=True, eq=False)
class EffectGauge:
    """Change of an objective from the plain model, in the aim's sense, paired by prompt."""

    model: Model
    objective: Objective
    side: Side
    plain: Floats
    sign: float
    statistic: str = "change"

    @property
    def groups(self) -> tuple[str, ...]:
        """The prompts' groups."""
        return self.side.groups

    @property
    def quantity(self) -> str:
        """The objective's name."""
        return self.objective.name

    @property
    def unit(self) -> str:
        """The objective's unit."""
        return self.objective.unit

    @classmethod
    def on(cls, model: Model, objective: Objective, side: Side, sign: float) -> "EffectGauge":
        """Measure the plain model once."""
        return cls(model, objective, side, objective.score(model, side.prompts).values[0], sign)

    def read(self, interventions: Sequence[Intervention]) -> list[Reading]:
        """The change of every prompt."""
        found = measure(self.model, interventions, self.objective, self.side.prompts)
        return [[np.array([v]) for v in self.sign * (row - self.plain)] for row in found.values]

    def value(self, reading: Reading, rows: Rows | None = None) -> float:
        """The mean change; prompts to which the objective does not apply drop out."""
        drawn = reading if rows is None else [reading[i] for i in rows]
        values = np.concatenate(drawn)
        values = values[~np.isnan(values)]
        return float(values.mean()) if len(values) else float("nan")

    def estimate(self, reading: Reading, *, seed: int = 0) -> Estimate:
        """With an interval that resamples groups of prompts."""
        unit = f"change in {self.unit}"  # a difference of rates is no rate
        return cluster_mean(np.concatenate(reading), self.groups, seed=seed, unit=unit)


def read_all(gauge: Gauge, interventions: Sequence[Intervention]) -> list[Reading]:
    """Measure many together; of a failure, name the strength and site that caused it.

    Raises:
        ActivationError: logits or values that are not numbers.
    """
    try:
        found = gauge.read(interventions)
    except ActivationError:
        for one in interventions:
            try:
                gauge.read([one])
            except ActivationError as error:
                raise ActivationError(f"{_named(one)}: {error}") from error
        raise
    for one, reading in zip(interventions, found, strict=True):
        if not np.isfinite(gauge.value(reading)):
            raise ActivationError(
                f"{_named(one)}: {gauge.quantity} is {gauge.value(reading)} on "
                f"{len(reading)} prompts; lower the largest strength (at_most=), load the model "
                "with dtype='float32', or check that the prompts have what is measured"
            )
    return found


def _named(one: Intervention) -> str:
    return f"strength {one.strength:g} at {', '.join(map(str, one.sites))}"

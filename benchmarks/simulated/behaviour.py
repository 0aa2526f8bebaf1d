"""Rates of one model held against bounds, preferences and groups: answers are drawn."""

from collections.abc import Sequence
from functools import partial
from typing import Any
from unittest.mock import MagicMock, patch

import numpy as np

from simulated.rows import Rng, row, seed_of
from simulated.scripted import (
    REFUSED,
    RIGHT,
    WRONG,
    Scripted,
    asked,
    clustered,
    contrast,
    happens,
    said,
    subject,
    undrawn,
)
from steerkit.evaluations.branching_result import BranchingFactor, PromptBranching
from steerkit.evaluations.decoding import decoding_robustness
from steerkit.evaluations.parity import parity_of
from steerkit.prompts import Contrast, Prompt
from steerkit.protocols import Completion
from steerkit.statistics import Estimate
from steerkit.suites import outcomes, preference
from steerkit.suites.examinations import (
    branching,
    censorship,
    decoding,
    over_refusal,
    parity,
    refusal,
)

AT_THE_BOUND = 0.025
"""Yes takes the lower end of a 95% interval beyond the bound."""


@row(
    "refusal",
    level=AT_THE_BOUND,
    nothing=0.5,
    planted=0.75,
    plant="75% refused",
    draws=120,
    found=20,
)
def refusals(rng: Rng, rate: float) -> bool:
    """So many of 80 harmful requests in 20 templates are refused; the bound is 50%."""
    given = contrast("refusal", 80)
    model = said(given.positive, np.where(happens(rng, rate, 80), REFUSED, RIGHT))
    with patch.multiple(refusal, outcome_section=undrawn):
        return refusal.refusal(subject({"refusal": given}, model=model)).answer == "yes"


@row(
    "over_refusal",
    level=AT_THE_BOUND,
    nothing=0.1,
    planted=0.35,
    plant="35% refused",
    draws=120,
    found=20,
)
def over_refusals(rng: Rng, rate: float) -> bool:
    """So many of 80 look-alikes in 20 templates are refused; the bound is 10%."""
    given, _ = asked("lookalikes", 80)
    model = said(given, np.where(happens(rng, rate, 80), REFUSED, RIGHT))
    with patch.multiple(over_refusal, outcome_section=undrawn):
        found = over_refusal.over_refusal(subject({}, {"lookalikes": given}, model=model))
    return found.answer == "yes"


@row(
    "censorship",
    level=AT_THE_BOUND,
    nothing=0.1,
    planted=0.45,
    plant="45 points more",
    draws=60,
    found=10,
)
def censored(rng: Rng, excess: float) -> bool:
    """Of 80 on the control 20% are neither refused nor right, on the topic so many points more;
    the bound is 10 points.
    """
    given = contrast("topic", 80)
    neither = np.concatenate([happens(rng, rate, 80) for rate in (0.2 + excess, 0.2)])
    model = said(given.prompts, np.where(neither, WRONG, RIGHT))
    with patch.multiple(censorship, outcome_section=undrawn):
        return censorship.censorship(subject({"topic": given}, model=model)).answer == "yes"


class Sampled(Scripted):
    """Refuses when decoded greedily; a sample answers as often as is written of its prompt."""

    rng: Rng
    rates: np.ndarray

    def generate(
        self, prompts: Sequence[Prompt], *, temperature: float = 0.0, **_: Any
    ) -> list[Completion]:
        if temperature == 0:
            return [Completion(p, REFUSED, (), ()) for p in prompts]
        gives_in = self.rng.random(len(prompts)) < self.rates
        return [
            Completion(p, RIGHT if yes else REFUSED, (), ())
            for p, yes in zip(prompts, gives_in, strict=True)
        ]


@row(
    "decoding",
    level=AT_THE_BOUND,
    nothing=0.1,
    planted=0.4,
    plant="40% answered at any setting",
    draws=16,
    found=6,
)
def decoded(rng: Rng, rate: float) -> bool:
    """So many of 60 refused requests are answered at any of nine settings; the bound is 10%."""
    given = contrast("refusal", 60)
    # Whether any of nine answers is drawn by template; single samples are alike.
    any_of = np.clip(clustered(rng, rate, 60), 0, 1 - 1e-9)
    model = Sampled(rng=rng, rates=1 - (1 - any_of) ** (1 / 9))
    few = partial(decoding_robustness, n_permutations=9, n_resamples=9)
    with patch.multiple(decoding, decoding_robustness=few, drawn=MagicMock()):
        found = decoding.decoding(subject({"refusal": given}, model=model, seed=seed_of(rng)))
    return found.answer == "yes"


@row(
    "branching",
    level=0.05,
    nothing=0.9,
    planted=0.7,
    plant="0.7 of the other's",
    draws=60,
    found=10,
)
def narrowed(rng: Rng, ratio: float) -> bool:
    """Steered over plain, and plain over the other model, 48 prompts in 24 templates: both ratios
    are so large; the bound is 0.9, and each may be called below it in 2.5%.
    """
    given = contrast("refusal", 24, per=2)
    level = rng.normal(1.5, 0.4, 48)
    arms: dict[str, Any] = {n: Scripted(name=n) for n in ("against", "model", "steered")}

    def drawn(model: Scripted, prompts: Sequence[Prompt], **_: Any) -> BranchingFactor:
        noise = rng.normal(0.0, 0.2, 24).repeat(2) + rng.normal(0.0, 0.2, 48)
        power = list(arms).index(model.info.name)
        each = tuple(
            PromptBranching(p.text, p.group, float(f), float(f), 0.1, 8.0, 1.0)
            for p, f in zip(prompts, np.exp(level + noise) * ratio**power, strict=True)
        )
        whole = Estimate(3.0, 2.0, 4.0, 24, "tokens")
        return BranchingFactor(whole, whole, each, (), 8, "T=1", model.info.name, 0)

    with patch.multiple(branching, branching_factor=drawn, side_by_side=undrawn):
        given_to = subject({"refusal": given}, seed=seed_of(rng), **arms)
        return branching.branching(given_to).answer == "yes"


@row(
    "stereotypes",
    "truthfulness",
    level=AT_THE_BOUND,
    nothing=0.5,
    planted=0.75,
    plant="75% of pairs",
    draws=150,
    found=20,
)
def preferring(rng: Rng, share: float) -> bool:
    """The first of so many of 90 pairs in 45 groups is likelier; the bound is half. Sums and
    means per token agree on each pair, which is the worst for false alarms.
    """
    first = happens(rng, share, 90, 2).astype(float)
    pairs = Contrast.of(*asked("stereotypes", 90, 2), paired=True, name="stereotypes")
    counted = preference.Preferences(first, first, first)
    with (
        patch.multiple(preference, preferences=lambda *_, **__: counted),
        patch.object(outcomes, "FLIPS", 999),
    ):
        found = preference.preferred(
            subject({"stereotypes": pairs}, seed=seed_of(rng)), "stereotypes",
            first="one", second="other",
        )  # fmt: skip
    return found.answer == "yes"


@row(
    "parity",
    level=0.05,
    planted=0.45,
    plant="one group answered 45 points less",
    draws=40,
    found=10,
)
def six_groups(rng: Rng, lost: float) -> bool:
    """24 templates, easier and harder ones, about six groups; the third is answered less."""
    hard = np.repeat(rng.uniform(0.5, 0.9, 24), 6) - lost * np.tile(np.arange(6) == 2, 24)
    people = [
        Prompt(f"w{w} {t}", category=f"w{w}", group=f"t{t}") for t in range(24) for w in range(6)
    ]
    model = said(people, np.where(rng.random(144) < hard, RIGHT, REFUSED))
    fewer = partial(parity_of, n_permutations=199)
    with patch.multiple(parity, ranked=undrawn, parity_of=fewer):
        found = parity.parity(subject({}, {"groups": people}, model=model, seed=seed_of(rng)))
    return found.answer == "yes"

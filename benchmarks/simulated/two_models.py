"""Two models: scores of their answers, states of both, and directions of one in the other."""

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from simulated.rows import Rng, row, seed_of
from simulated.scripted import (
    Scripted,
    asked,
    captured,
    clustered,
    contrast,
    subject,
    texts,
    undrawn,
)
from steerkit.comparisons import consistency_recovery, shift_of_states
from steerkit.comparisons import membership as membership_scores
from steerkit.comparisons import representation_shift as shifts
from steerkit.comparisons import transfer as transfers
from steerkit.prompts import Prompt
from steerkit.site import Site
from steerkit.statistics import Estimate, null
from steerkit.suites.examinations import membership, representation_shift, transfer

RANDOM = "a random direction"


@row(
    "membership",
    level=0.05,
    planted=0.8,
    plant="0.8 nats a token in one of three domains",
    safe="a whole interval has also to lie above 0.1 nats a token",
    draws=20,
    found=8,
)
def memberships(rng: Rng, risen: float) -> bool:
    """Log-probabilities of six tokens of 60 answers in 15 templates, in each of three domains,
    under two models; those of one domain are so much higher.
    """
    return _risen(rng, risen * (np.arange(180) < 60))


@row(
    level=0.025,
    nothing=0.1,
    planted=0.8,
    plant="0.8 nats a token in all three domains",
    name="membership, at its bound",
    draws=16,
    found=6,
)
def all_memberships(rng: Rng, risen: float) -> bool:
    """The same where all three domains have risen by so much; the bound is 0.1 nats a token. More
    alone is yes: half of a two-sided 5% over all domains.
    """
    return _risen(rng, np.full(180, risen))


def _risen(rng: Rng, risen: np.ndarray) -> bool:
    given, (alike, _) = contrast("refusal", 60), asked("lookalikes", 60)
    easy = rng.normal(-3.0, 1.0, (180, 6))

    def scored(rise: np.ndarray) -> list[torch.Tensor]:
        level = 0.3 * rng.standard_normal(45).repeat(4) + rise
        return list(torch.tensor(easy + level[:, None] + 0.5 * rng.standard_normal((180, 6))))

    values = {"model": scored(risen), "against": scored(0 * risen)}
    arms = {name: Scripted(name=name, tokenize=list) for name in values}
    with (
        patch.multiple(
            membership_scores, require_one_tokenizer=undrawn,
            answer_log_probs=lambda model, *_, **__: values[model.info.name],
        ),
        patch.multiple(membership, ranked=undrawn),
    ):  # fmt: skip
        given_to = subject({"refusal": given}, {"lookalikes": alike}, seed=seed_of(rng), **arms)
        return membership.membership(given_to).answer == "yes"


@row(
    "representation_shift",
    level=0.05,
    planted=2.5,
    plant="one concept moves by 2.5 of its own",
    draws=5,
    found=4,
)
def shifted(rng: Rng, own: float) -> bool:
    """96 states of three concepts in pairs of a template, at two layers: all move by 5 along
    one axis and each at random, by more than what is called rounding; those of one concept also
    by so much along another.
    """
    width, per = 12, 2
    given = contrast("refusal", 48, per)
    every = texts(given.prompts)
    n = len(every)
    concept = rng.integers(0, 3, n)
    before = 8 * np.eye(width)[concept][:, None] + 0.5 * rng.standard_normal((n, 2, width))
    shared = rng.standard_normal((n // per, 2, width)).repeat(per, 0)
    by = 5 * np.eye(width)[10] + shared + rng.standard_normal((n, 2, width))
    by[concept == 0] += own * np.eye(width)[11]
    arms: dict[str, Any] = {
        name: Scripted(states=(every, torch.tensor(states)), name=name)
        for name, states in (("model", before + by), ("against", before))
    }
    nothing = Estimate(0.0, 0.0, 0.0, 1, "fraction")
    steering = SimpleNamespace(
        kind="own", site=Site(0), closed={"own": nothing}, behaviour={}, summary=str,
        nulls={"isotropic": null("", 0.0, [0.0])},
    )  # fmt: skip
    with (
        patch.multiple(
            shifts, capture=captured, _grounded=lambda found, *_: found,
            shift_of_states=partial(shift_of_states, n_seeds=0),
        ),
        patch.multiple(
            representation_shift, PERMUTATIONS=199, steer_by_shift=lambda *_, **__: steering,
            shift_layers=undrawn, _consistency=str,
        ),
    ):  # fmt: skip
        given_to = subject({"refusal": given}, seed=seed_of(rng), **arms)
        return representation_shift.representation_shift(given_to).answer == "yes"


class Routed(Scripted):
    """A model of which views are made, by what is done to it."""

    def with_rows(self, *rows: Any, force: bool = False) -> Any:
        return SimpleNamespace(
            model=self, made=[None, *(row[0] for row in rows)], generate=self.generate
        )


@row(
    "transfer",
    level=0.025,
    planted=0.6,
    plant="all of 60 points lost",
    safe="answers are 0 or 1: few sums of ten groups are as rare as Holm asks for",
    draws=10,
    found=5,
)
def transferred(rng: Rng, lost: float) -> bool:
    """Both models' directions bring refusals from 5% to 65% and, ablated, from 95% to 35% on 20
    prompts a side in pairs; so many points less in the other model. Lost alone is yes: half of a
    two-sided 5% over all that works.
    """
    given = contrast("refusal", 80, per=2)
    every = texts(given.prompts)
    sides = np.repeat([3.0, -3.0], 80)[:, None, None] * np.eye(8)[0]
    states = torch.tensor(sides + 0.5 * rng.standard_normal((160, 2, 8)))
    arms: dict[str, Any] = {
        name: Routed(states=(every, states), name=name) for name in ("model", "against")
    }

    def measure(view: Any, prompts: Sequence[Prompt], slots: Sequence[int]) -> np.ndarray:
        harmful, n = "positive" in prompts[0].text, len(prompts)
        rows = []
        for made in (view.made[slot] for slot in slots):
            does = 0.02 if made is RANDOM else 0.0
            if made is not RANDOM and made is not None:
                home = made.directions[0].model.name == view.model.info.name
                does = 0.6 if home else 0.6 - lost
            rate = 0.95 - does if harmful else 0.05 + does
            rows.append(rng.random(n) < clustered(rng, rate, n, 2))
        return np.array(rows, dtype=float)

    met = SimpleNamespace(size=lambda _: 1.0, at_last_prompt=lambda _: torch.zeros(2, 8))
    with (
        patch.multiple(
            transfers, states=lambda *_, **__: met, with_own_answers=list,
            kl_by_slot=lambda *_: [[torch.zeros(1)]], matched=lambda _, chance, *__: chance,
            random_directions=lambda _, __, ___, n, **____: [RANDOM] * n,
        ),
        patch.multiple(
            transfer, capture=captured, layer_curve=undrawn, _refused=lambda _: measure
        ),
    ):  # fmt: skip
        given_to = subject({"refusal": given}, seed=seed_of(rng), **arms)
        return transfer.transfer(given_to).answer == "yes"


@row(
    level=0.05,
    planted=1.5,
    plant="a slope of 1.5",
    name="consistency and recovery",
    draws=14,
    found=5,
)
def consistent(rng: Rng, slope: float) -> bool:
    """Consistency and recovery of twelve concepts in each of twelve pairs of models; where they
    have no slope each pair has a level of its own in both. Yes is an interval without 0.
    """
    pairs = []
    for _ in range(12):
        level = 2.0 * rng.standard_normal(2) * (1.0, slope == 0)
        x = rng.standard_normal(12)
        y = slope * x + rng.standard_normal(12) + level[1]
        pairs.append(
            SimpleNamespace(
                concepts=[
                    SimpleNamespace(consistency=a, recovery=b, recovery_global=b)
                    for a, b in zip(x + level[0], y, strict=True)
                ]
            )
        )
    names = [f"pair {i}" for i in range(12)]
    found: Any = pairs
    value = consistency_recovery(found, names, n_resamples=499, seed=seed_of(rng)).value
    return not value.low <= 0 <= value.high

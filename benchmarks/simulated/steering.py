"""What steering does: answers of two arms, log-probabilities, and states that it moves."""

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from simulated.rows import Rng, row, seed_of
from simulated.scripted import (
    REFUSED,
    RIGHT,
    SAYS,
    WRONG,
    Scripted,
    asked,
    captured,
    clustered,
    contrast,
    happens,
    said,
    spending,
    subject,
    texts,
    undrawn,
)
from steerkit.audits.arms import ArmInfo
from steerkit.audits.evidence import Item
from steerkit.extraction import extract
from steerkit.prompts import Contrast, Prompt
from steerkit.searches.nulls import NullDraws
from steerkit.site import Site
from steerkit.statistics import Estimate, cluster_mean
from steerkit.suites import concepts, routing
from steerkit.suites.examinations import (
    cleaned_direction,
    completeness,
    cross_concept_spill,
    side_effects,
    wrong_way,
)

RANDOM = "a random direction"
BEYOND_ALL = 1 / 40
"""Yes takes more than each of 39 random directions does."""


def no_words(*_: Any, **__: Any) -> tuple[list[Any], dict[str, str]]:
    """In the place of prompting: no arms, and none missing."""
    return [], {}


@row(
    "side_effects",
    level=0.025,
    planted=0.4,
    plant="40 points more look-alikes refused",
    safe="harms go together and Holm takes them for nine; an interval without 0 is asked for too",
    draws=8,
    found=5,
)
def aside(rng: Rng, harm: float) -> bool:
    """Both arms answer 44 harmful, 44 harmless requests and 80 look-alikes, in templates of four,
    drawn apart from the same rates; the steered one refuses so many more look-alikes. Worse alone
    is yes: half of a two-sided 5% over nine harms.
    """
    given = contrast("refusal", 44)
    alike, _ = asked("lookalikes", 80)
    answers: dict[str, list[str]] = {"model": [], "steered": []}
    for prompts, refused in ((given.positive, 0.7), (given.negative, 0.1), (alike, 0.1)):
        rates = clustered(rng, refused, len(prompts))
        for arm in answers:
            more = harm if arm == "steered" and prompts is alike else 0.0
            mine = rates + more * (1 - rates)
            edges = np.cumsum([mine, 0.8 * (1 - mine), 0.1 * (1 - mine)], 0)
            answers[arm] += SAYS[(rng.random(len(prompts)) > edges).sum(0)].tolist()
    arms = {arm: said([*given.prompts, *alike], told) for arm, told in answers.items()}
    audited = subject({"refusal": given}, {"lookalikes": alike}, seed=seed_of(rng), **arms)
    with (
        patch.multiple(
            side_effects, audit=_items, harm_figure=undrawn, equal_kl=lambda _: spending()
        ),
        patch.multiple("steerkit.audits.scores", N_FLIPS=999, percentile=undrawn),
    ):
        return side_effects.side_effects(audited).answer == "yes"


def _items(_: Any, __: Any, given: Contrast, *, said: Any, **___: Any) -> Any:
    """`audit`, as far as the answers; one KL for all of them."""
    kept = dict.fromkeys(("refusal", "compliance", "correct", "degeneration", "kl"), 0.0)
    rows = list(zip(given.prompts, given.groups, given.labels, strict=True))
    items = tuple(
        Item(
            arm, i, "positive" if label else "negative", group, prompt.text,
            reference=prompt.answer, output=said[arm][i].text, measured={"kl": (0.1,)}, scores=kept,
        )
        for arm in ("plain", "steered")
        for i, (prompt, group, label) in enumerate(rows)
    )  # fmt: skip
    arms = (ArmInfo("plain", "plain", ""), ArmInfo("steered", "steered", ""))
    return SimpleNamespace(items=items, arms=arms, not_measured={}, target_side="positive")


@row(
    "wrong_way",
    level=0.025,
    nothing=0.1,
    planted=0.35,
    plant="35% moved the wrong way",
    draws=14,
    found=6,
)
def against_aim(rng: Rng, share: float) -> bool:
    """The refusal becomes rarer on 160 harmful requests in 40 templates, likelier on so many of
    them; half choose side and aim. The bound is 10%.
    """
    given = contrast("refusal", 160)
    every, n = texts(given.prompts), len(given.positive)
    before = rng.normal(-3.0, 1.0, 2 * n)
    size = rng.exponential(1.0, 2 * n) * np.repeat([1.0, 0.1], n)
    wrong = np.concatenate([happens(rng, share, n), rng.random(n) < 0.5])
    says = dict.fromkeys(every, REFUSED)

    def moved(change: Any) -> Scripted:
        return Scripted(says, log_prob=dict(zip(every, before + change, strict=True)))

    def read(model: Any, given: Sequence[Prompt], **_: Any) -> list[np.ndarray]:
        return [np.array([model.log_prob[p.text]]) for p in given]

    controls = [moved(rng.normal(0.0, 1.0, 2 * n)) for _ in range(19)]
    arms: dict[str, Any] = {"model": moved(0.0), "steered": moved(np.where(wrong, size, -size))}
    with patch.multiple(
        wrong_way, side_by_side=undrawn, prompting=no_words, answer_log_probs=read,
        equal_kl=lambda _: spending(controls),
    ):  # fmt: skip
        found = wrong_way.wrong_way(subject({"refusal": given}, seed=seed_of(rng), **arms))
    return found.answer == "yes"


@row(
    "cross_concept_spill",
    level=0.05,
    planted=2.5,
    plant="2.5 class gaps along the topic",
    draws=12,
    found=6,
)
def spilled(rng: Rng, gaps: float) -> bool:
    """Three concepts held by states of 64 dimensions, 120 prompts each. Steering moves them by
    three class gaps along refusal, so many along the topic, and aside by a random direction, as
    each of 19 controls does: more than each of them is one in twenty.
    """
    width, gap = 64, 4.0
    roles = {role: contrast(role, 60) for role in ("refusal", "topic", "polarity")}
    every = [p.text for c in roles.values() for p in c.prompts]
    states = 0.5 * rng.standard_normal((len(every), width))
    for i in range(3):
        states[120 * i : 120 * i + 60, i] += gap
    aim = np.zeros(width)
    aim[:2] = 3 * gap, gaps * gap

    def view(towards: Any) -> Scripted:
        other = rng.standard_normal(width)
        by = towards + 16.0 * other / np.linalg.norm(other)
        uneven = 1 + 0.2 * rng.standard_normal((len(every), 1))
        return Scripted(states=(every, torch.tensor(states + uneven * by)[:, None]))

    plain = Scripted(states=(every, torch.tensor(states)[:, None]))
    controls = [view(0.0) for _ in range(19)]
    # Of one layer none has to be chosen, by its AUC.
    unscored = partial(extract, n_folds=0)
    bare = {role: c.map(lambda p: p.with_answer("")) for role, c in roles.items()}
    with (
        patch.multiple(concepts, capture=captured, extract=unscored),
        patch.multiple(
            cross_concept_spill, capture=captured, prompting=no_words,
            equal_kl=lambda _: spending(controls),
        ),
    ):  # fmt: skip
        found = cross_concept_spill.cross_concept_spill(
            subject(bare, seed=seed_of(rng), model=plain, steered=view(aim))
        )
    return found.answer == "yes"


@row(
    "completeness",
    level=0.025,
    nothing=0.15,
    planted=0.6,
    plant="60% refused again",
    draws=20,
    found=8,
)
def brought_back(rng: Rng, rate: float) -> bool:
    """Of 120 harmful requests in 60 templates 90% are refused, 5% under steering, and so many
    with a direction refitted at any of three layers; the bound is ten points above the 5%.
    """
    given = contrast("refusal", 120, per=2)
    rates = {
        name: clustered(rng, r, 120, 2)
        for name, r in {"model": 0.9, "steered": 0.05, "back": rate}.items()
    }

    def drawn(name: str, **more: Any) -> Scripted:
        refused = np.where(rng.random(120) < rates[name], REFUSED, RIGHT)
        return said(given.positive, refused, **more)

    steered = drawn("steered", with_=lambda d: drawn("steered" if d is RANDOM else "back"))
    fitted = [SimpleNamespace(site=f"resid_post@{i}") for i in range(3)]
    acts = SimpleNamespace(at=lambda _: torch.zeros(2, 1), row_labels=torch.tensor([1, 0]))
    with patch.multiple(
        completeness, layer_curve=undrawn, prompting=no_words, Add=lambda d: d,
        capture=lambda *_, **__: acts, extract=lambda *_, **__: fitted,
        random_directions=lambda *_, **__: [RANDOM] * 9,
    ):  # fmt: skip
        found = completeness.completeness(
            subject({"refusal": given}, model=drawn("model"), steered=steered, seed=seed_of(rng))
        )
    return found.answer == "yes"


def by_chance(rng: Rng) -> float:
    """Share of prompts whose behaviour a direction takes away that has nothing to do with it."""
    return float(rng.beta(2, 10))


@row("cleaned_direction", level=BEYOND_ALL, planted=0.7, plant="70% taken away", draws=8, found=5)
def cleaned(rng: Rng, takes: float) -> bool:
    """Refusal is routed by its direction; the topic's, once cleaned of refusal, takes away what
    some random direction does, or so much. 60 prompts a role choose and report, in pairs.
    """
    roles = {role: contrast(role, 100, per=2) for role in ("refusal", "topic")}
    every = [p for c in roles.values() for p in c.prompts]
    states = 0.5 * rng.standard_normal((400, 1, 8))
    states[:100, :, 0] += 3
    states[200:300, :, :2] += 2
    wrong = np.where(np.tile(np.repeat([True, False], 100), 2), WRONG, RIGHT)
    model = said(every, wrong, states=(texts(every), torch.tensor(states)))
    topic = takes or by_chance(rng)

    def changes(_: Any, prompts: Sequence[Prompt], ablations: Sequence[Any]) -> np.ndarray:
        rows = []
        for one in ablations:
            rate = 0.8
            if one is RANDOM:
                rate = by_chance(rng)
            elif one is not None:
                (d,) = one.directions
                rate = topic if (d.concept, d.method[-7:]) == ("topic", "cleaned") else 0.8
            rows.append(-1.0 * happens(rng, rate if one else 0.0, len(prompts), 2))
        return np.array(rows) + 0.0

    met = SimpleNamespace(size=lambda _: 1.0)
    with patch.multiple(
        cleaned_direction, capture=captured, layer_curve=undrawn, _changes=changes,
        states=lambda *_, **__: met, with_own_answers=list,
        random_directions=lambda _, __, ___, n, **____: [RANDOM] * n,
        matched=lambda _, drawn, *__: drawn,
    ):  # fmt: skip
        found = cleaned_direction.cleaned_direction(subject(roles, model=model, seed=seed_of(rng)))
    return found.answer == "yes"


@row(
    "refusal_routing",
    "topic_routing",
    level=BEYOND_ALL,
    planted=0.7,
    plant="70% taken away",
    draws=80,
    found=20,
)
def ablated(rng: Rng, takes: float) -> bool:
    """What a search chose takes away what some random direction does, or so much, of 30 prompts
    in 15 templates.
    """
    given = contrast("refusal", 120, per=2)
    model = said(given.positive, [REFUSED] * 120)

    def drawn(rate: float) -> np.ndarray:
        return happens(rng, rate, 30, 2).astype(float)

    def found(*_: Any, **__: Any) -> Any:
        change = drawn(takes or by_chance(rng))
        chance = tuple(float(drawn(by_chance(rng)).mean()) for _ in range(routing.DRAWS))
        one = Estimate(1.0, 0.9, 1.0, 15, "fraction")
        final = SimpleNamespace(
            plain=one, steered=one, other_plain=one, other_steered=one, items=(),
            nulls=[NullDraws("isotropic", float(change.mean()), chance)],
            effect=cluster_mean(change, [f"g{i // 2}" for i in range(30)], unit="fraction"),
        )  # fmt: skip
        return SimpleNamespace(
            final=final, best=SimpleNamespace(how="ablation", site=Site(0)), rows=()
        )

    with patch.multiple(
        routing, search=found, capture=undrawn, extract=undrawn, _over_depth=undrawn,
        _items=lambda *_: (),
    ):  # fmt: skip
        given_to = subject({"refusal": given}, model=model, seed=seed_of(rng))
        return routing.routed(given_to, "refusal", "requests are refused").answer == "yes"

"""What a sweep says of its rows: the front, the wrong way, transfer, and no bias in the end."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from steerkit.direction import Directions
from steerkit.prompts import Contrast
from steerkit.searches import Projection, Refusal, Scores, Sweep, search
from steerkit.searches.guards import Damage
from steerkit.statistics import Estimate


def find(toy: Any, directions: Any, held_out: Contrast, **settings: Any) -> Sweep:
    small: dict[str, Any] = {"n_random": 0, "progress": False, "max_new_tokens": 9}
    return search(toy, directions, held_out, **{**small, **settings})


def test_the_front_is_what_nothing_beats(
    toy: Any, toy_directions: Directions, toy_held_out: Contrast
) -> None:
    found = find(toy, toy_directions, toy_held_out, guard={"kl": 0.1, "perplexity": 0.1})
    rng = np.random.default_rng(0)

    def drawn_row(row: Any) -> Any:
        effect = rng.integers(20) / 20
        costs = {g: Estimate(effect + rng.integers(6) / 20, 0, 1, 4) for g in row.damages}
        damages = {g: Damage(cost, 0.0) for g, cost in costs.items()}
        return replace(row, effect=Estimate(effect, 0, 1, 4), damages=damages)

    rows = tuple(drawn_row(row) for row in found.rows * 4)
    points = [(-r.effect.value, *(d.mean.value for d in r.damages.values())) for r in rows]
    front = replace(found, rows=rows).pareto

    def beaten(p: tuple[float, ...]) -> bool:
        return any(all(a <= b for a, b in zip(q, p, strict=True)) and q != p for q in points)

    expected = {p for p in points if not beaten(p)}
    drawn = [(-r.effect.value, *(d.mean.value for d in r.damages.values())) for r in front]
    assert set(drawn) == expected and len(drawn) == len(expected) > 2
    assert [p[1] for p in drawn] == sorted(p[1] for p in drawn)


def test_several_guards_all_have_to_hold_and_the_nearest_names_the_worst(
    toy: Any, toy_directions: Directions, toy_held_out: Contrast
) -> None:
    found = find(toy, toy_directions[1:2], toy_held_out, guard={"kl": 10.0, "perplexity": 1e-9})
    assert found.limits == {"kl": 10.0, "perplexity": 1e-9}
    for row in found.rows:
        assert row.allowed == all(
            row.damages[name].mean.value <= limit for name, limit in found.limits.items()
        )
    tight = find(
        toy, toy_directions[1:2], toy_held_out, references="zero",
        guard={"kl": 1e-9, "perplexity": 2e-9},
    )  # fmt: skip
    row, guard, value = tight.nearest
    ratios = {name: row.damages[name].mean.value / x for name, x in tight.limits.items()}
    assert guard == max(ratios, key=lambda g: ratios[g]) and value == row.damages[guard].mean.value
    assert "none within the guard; the nearest is" in tight.summary()


@dataclass(frozen=True)
class Signed:
    """A projection whose sign depends on the prompt: half of them move the other way."""

    inner: Projection
    signs: dict[str, float]
    name: str = "signed"
    unit: str = "gaps"

    def score(self, model: Any, prompts: Any, slots: Any = None) -> Scores:
        signs = np.array([self.signs[p.text] for p in prompts])
        return Scores(self.inner.score(model, prompts, slots).values * signs)


def test_the_share_that_moves_the_wrong_way_is_counted(
    toy: Any, make_contrast: Callable[..., Contrast], make_direction: Callable[..., Any]
) -> None:
    held_out = make_contrast(40, seed=3)
    signs = {p.text: -1.0 if i % 4 == 0 else 1.0 for i, p in enumerate(held_out.positive)}
    signs |= {p.text: 1.0 for p in held_out.negative}
    direction = make_direction(1)
    found = find(
        toy, direction, held_out, objective=Signed(Projection(direction), signs),
        intervene="add", strengths=(-1.0,), positions="last_prompt", guard=None,
    )  # fmt: skip
    asked = [p for p in held_out.split(0.5, seed=0)[1].positive]
    assert found.final is not None
    expected = np.mean([signs[p.text] < 0 for p in asked])
    assert found.final.wrong_way.value == pytest.approx(expected) and 0 < expected < 0.5
    groups = held_out.split(0.5, seed=0)[1].groups[: len(asked)]
    for name, effect in found.final.by_group.items():
        own = [signs[p.text] for p, g in zip(asked, groups, strict=True) if g == name]
        assert effect == pytest.approx(np.mean(own), rel=1e-4)


def test_transfer_measures_the_choice_on_other_contrasts(
    toy: Any,
    toy_directions: Directions,
    toy_held_out: Contrast,
    make_contrast: Callable[..., Contrast],
) -> None:
    other = make_contrast(15, seed=9)
    found = find(toy, toy_directions, toy_held_out, transfer={"others": other})
    assert found.final is not None
    (transfer,) = found.final.transfer
    steered = toy.with_(found.best.intervention)
    for model, estimate in ((toy, transfer.plain), (steered, transfer.steered)):
        assert estimate.value == Refusal(9).score(model, other.positive).values.mean()
    assert transfer.name == "others" and transfer.wrong_way.value == 0.0
    assert transfer.effect.value == transfer.plain.value - transfer.steered.value == 1.0
    assert "on others: refusal 1" in found.summary()
    alone = find(toy, toy_directions, toy_held_out, transfer=other)
    assert alone.final is not None and alone.final.transfer[0].name == "toy refusal"


def test_on_random_labels_the_end_is_unbiased_and_the_best_of_many_is_not(
    toy: Any, make_contrast: Callable[..., Contrast], make_direction: Callable[..., Any]
) -> None:
    """What is chosen looks good where it was chosen; on other prompts it does nothing."""
    held_out = make_contrast(60, seed=4)
    directions = [make_direction(1), replace(make_direction(1), method="other", scale=4.0)]
    rng = np.random.default_rng(0)
    chosen, final = [], []
    for seed in range(60):
        signs = {p.text: float(rng.choice([-1.0, 1.0])) for p in held_out.prompts}
        found = find(
            toy, directions, held_out, objective=Signed(Projection(directions[0]), signs),
            intervene="add", strengths=(-1.0, -0.5, 0.5, 1.0), positions="last_prompt",
            guard=None, seed=seed,
        )  # fmt: skip
        assert found.final is not None
        chosen.append(found.best.effect.value)
        final.append(found.final.effect.value)
    error = np.std(final) / len(final) ** 0.5
    assert abs(np.mean(final)) < 3 * error
    assert np.mean(chosen) > 5 * error

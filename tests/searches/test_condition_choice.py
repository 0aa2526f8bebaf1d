"""The threshold of the best F1 by brute force, ties, and what choosing does to an estimate."""

import numpy as np
import pytest
import torch

from steerkit.searches.conditions.choice import (
    best_threshold,
    choose,
    f1_of,
    level,
    mean_differences,
    options,
    quality,
)
from steerkit.site import Site

LAST = "last_prompt"


@pytest.mark.parametrize("side", ["above", "below"])
@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_is_better_than_the_best(side: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 25)
    levels = np.round(rng.standard_normal(25) + labels * (1 if side == "above" else -1), 1)
    found = best_threshold(levels, labels, side)  # type: ignore[arg-type]
    assert found is not None
    threshold, f1, margin = found
    holds = levels >= threshold if side == "above" else levels < threshold
    assert f1_of(holds, labels) == pytest.approx(f1)
    assert margin * levels.std() == pytest.approx(np.abs(levels - threshold).min())
    values = np.unique(levels)
    brute = []
    for cut in (values[1:] + values[:-1]) / 2:
        fires = levels >= cut if side == "above" else levels < cut
        brute.append((f1_of(fires, labels), np.abs(levels - cut).min()))
    assert (f1, margin * levels.std()) == pytest.approx(max(brute))


def test_ties_go_to_the_larger_margin() -> None:
    threshold, f1, _ = best_threshold(  # type: ignore[misc]
        np.array([0.0, 1.0, 5.0, 6.0]), np.array([0, 0, 1, 1])
    )
    assert (threshold, f1) == (3.0, 1.0)
    # Between places too: both are perfect, the second is wider for its spread.
    x = torch.tensor([[0.0], [1.0], [2.0], [3.0]], dtype=torch.float64)
    wide = torch.tensor([[0.0], [0.1], [9.0], [9.1]], dtype=torch.float64)
    labels, rows = np.array([0, 0, 1, 1]), np.arange(4)
    states = {(Site(0), LAST): x, (Site(1), LAST): wide}
    units = mean_differences(states, labels, rows)  # type: ignore[arg-type]
    found = options(states, units, labels, rows, ["projection"], ["above"])  # type: ignore[arg-type]
    assert [o.f1 for o in found] == [1.0, 1.0]
    assert choose(found).site == Site(1)


def test_values_that_are_all_the_same_have_no_threshold() -> None:
    assert best_threshold(np.ones(4), np.array([0, 1, 0, 1])) is None


def test_a_cosine_of_nothing_is_0() -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    assert level(x, torch.tensor([1.0, 0.0]), "cosine") == pytest.approx([0, 0.6])
    assert level(x, torch.tensor([1.0, 0.0]), "projection") == pytest.approx([0, 3])


def test_on_random_labels_the_report_is_unbiased_and_the_chosen_maximum_is_not() -> None:
    """What a condition that knows nothing should get follows from how often it holds."""
    rng = np.random.default_rng(0)
    n, d, errors, chosen = 40, 12, [], []
    for _ in range(200):
        states = {
            (Site(layer), LAST): torch.from_numpy(rng.standard_normal((3 * n, d)))
            for layer in range(6)
        }
        labels = rng.permutation(np.repeat([0, 1], 3 * n // 2))
        fit, select, report = np.split(np.arange(3 * n), 3)
        units = mean_differences(states, labels, fit)  # type: ignore[arg-type]
        best = choose(options(states, units, labels, select, ["cosine", "projection"], ["above"]))  # type: ignore[arg-type]
        x = level(states[best.site, LAST][report], units[best.site, LAST], best.measure)  # type: ignore[index]
        holds, y = best.holds(x), labels[report]
        errors.append(f1_of(holds, y) - _blind(holds.sum(), y.sum(), n))
        x = level(states[best.site, LAST][select], units[best.site, LAST], best.measure)  # type: ignore[index]
        chosen.append(best.f1 - _blind(best.holds(x).sum(), labels[select].sum(), n))
    se = np.std(errors) / np.sqrt(len(errors))
    assert abs(np.mean(errors)) < 3 * se
    assert np.mean(chosen) > 0.05 and np.mean(chosen) > 10 * se


def _blind(holds: int, positive: int, n: int) -> float:
    """Expected F1 of holding on so many prompts at random: hits are hypergeometric."""
    return 2 * holds * positive / n / (holds + positive)


def test_precision_recall_and_their_intervals() -> None:
    labels = np.array([1] * 40 + [0] * 40)
    holds = np.array([True] * 30 + [False] * 10 + [True] * 6 + [False] * 34)
    found = quality(holds, labels, [f"g{i}" for i in range(80)])
    assert found.precision.value == pytest.approx(30 / 36)
    assert found.recall.value == pytest.approx(0.75)
    assert found.false_alarms.value == pytest.approx(0.15)
    assert found.f1.value == pytest.approx(2 * 30 / (36 + 40))
    assert found.f1.low < found.f1.value < found.f1.high
    assert found.always == pytest.approx(2 / 3)
    perfect = quality(labels == 1, labels, [f"g{i}" for i in range(80)])
    assert perfect.f1.value == 1 and 0.85 < perfect.f1.low < 0.97, "80 prompts leave a doubt"

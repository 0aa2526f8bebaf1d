"""What cannot be fitted is refused, in words that say what to do."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from steerkit.activations import Activations
from steerkit.errors import ActivationError, DirectionError
from steerkit.extraction.labelled import Labelled

Make = Callable[..., Activations]


def test_prompts_without_labels(plant: Make) -> None:
    with pytest.raises(ActivationError, match="have no labels; capture a Contrast, not a list"):
        Labelled.of(replace(plant(), labels=()))


def test_one_side_only(plant: Make) -> None:
    with pytest.raises(ActivationError, match=r"all 5 prompts are positive; .* negative prompts"):
        Labelled.of(plant().select(range(5)))


def test_labels_that_are_not_labels(plant: Make) -> None:
    with pytest.raises(ActivationError, match=r"labels are 1 or 0; got \[1, 2\]"):
        Labelled.of(replace(plant(2), labels=(1, 2, 1, 2)))


def test_no_rows(plant: Make) -> None:
    with pytest.raises(ActivationError, match="no rows to extract a direction from"):
        Labelled.of(plant().select([]))


def test_rows_that_are_all_the_same(make: Make) -> None:
    data = Labelled.of(make(torch.ones(6, 4), torch.ones(6, 4)))
    with pytest.raises(ActivationError, match=r"all 12 rows at resid_post@0 are the same.*leave"):
        data.rows(0)


def test_class_means_that_are_the_same(make: Make) -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(DirectionError, match="class means at resid_post@0 are the same"):
        Labelled.of(make(x, x)).rows(0)


def test_values_that_are_not_numbers(plant: Make) -> None:
    acts = plant(4, sites=2)
    acts.values[3, 1, 0] = float("nan")  # after the check that making activations does
    data = Labelled.of(acts)
    assert torch.isfinite(data.rows(0)).all()
    with pytest.raises(ActivationError, match="at resid_post@1 is NaN or infinite, first for"):
        data.rows(1)


def test_too_few_groups_to_hold_any_out(make: Make) -> None:
    x = torch.randn(8, 4)
    groups = ["template"] * 4 + ["a", "b", "c", "d"]
    with pytest.raises(ActivationError, match=r"positive prompts belong to 1 group.*n_folds=0"):
        Labelled.of(make(x[:4], x[4:], groups=groups)).require_groups()


def test_fewer_groups_than_folds_on_one_side(make: Make) -> None:
    x = torch.randn(10, 4)
    groups = ["t1", "t1", "t2", "t2", "t3", "a", "b", "c", "d", "e"]
    data = Labelled.of(make(x[:5], x[5:], groups=groups))
    data.require_folds(3)
    with pytest.raises(
        ActivationError, match=r"4 folds need 4 groups with positive prompts.*there are 3: give"
    ):
        data.require_folds(4)


def test_selected_rows_bring_only_their_own_prompts(plant: Make) -> None:
    acts = plant(5)
    data = Labelled.of(acts.select([9, 0, 3]))
    assert data.prompts == tuple(acts.prompts[i] for i in (0, 3, 9))
    assert data.labels.tolist() == [1, 1, 0]
    assert data.row_labels.tolist() == [0, 1, 1]
    assert data.row_groups == ("pair4", "pair0", "pair3")


def test_prompts_without_groups_stand_alone(plant: Make) -> None:
    data = Labelled.of(replace(plant(3), groups=()))
    assert len(set(data.groups)) == 6

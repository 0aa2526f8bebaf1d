"""Leave-one-category-out catches what holds within categories only."""

import numpy as np
import pytest
import torch

from steerkit.errors import ActivationError
from steerkit.probing.candidates import recipes
from steerkit.probing.left_out import unfit
from steerkit.probing.verbs import one_row_each, probe

NAMES = ("letters", "diaries", "recipes", "reports")
QUICK = {"n_permutations": 19, "n_random": 0, "progress": False, "n_folds": 4}


def by_category(make, *, specific: bool, n: int = 40, size: float = 4.0):
    """Pairs in four categories; the concept has one axis, or one of its own in each category."""
    draw = torch.Generator().manual_seed(6)
    total = n * len(NAMES)
    values = torch.randn(2 * total, 1, 12, generator=draw)
    category = np.arange(total) % len(NAMES)
    for i in range(total):
        values[i, :, category[i] if specific else 0] += size
    names = [NAMES[c] for c in category] * 2
    groups = [f"pair{i % total}" for i in range(2 * total)]
    return make(values, [1] * total + [0] * total, groups, categories=names)


def test_a_concept_of_one_axis_holds_in_categories_that_were_left_out(make):
    found = probe(by_category(make, specific=False), "ridge", **QUICK)
    assert found.left_out is not None and found.left_out.state == "beaten"
    assert found.left_out.auc.low > 0.8 and not found.left_out.at_chance
    assert [c.name for c in found.left_out.categories] == sorted(NAMES)
    assert all(c.n == 80 for c in found.left_out.categories)


def test_a_concept_that_is_category_specific_is_caught(make):
    found = probe(by_category(make, specific=True), "ridge", **QUICK)
    assert found.auc.low > 0.85, "within categories it is read"
    left = found.left_out
    assert left is not None and left.state == "matched"
    assert left.auc.low < 0.5 < left.auc.high and left.difference.low > 0.3
    assert found.verdict == "reads_topic" and "left-out categories" in found.exposed_by
    assert "falls to chance on left-out categories" in found.sentence()
    assert len(left.at_chance) >= 3


def test_prompts_that_share_a_group_with_the_category_are_not_fitted_on(make):
    """Two copies of every row in two categories: without the rule the copies would be found."""
    draw = torch.Generator().manual_seed(7)
    half = torch.randn(40, 1, 100, generator=draw)
    y = [1] * 20 + [0] * 20
    acts = make(
        half.repeat(2, 1, 1),
        y * 2,
        [f"text{i}" for i in range(40)] * 2,
        categories=["a"] * 40 + ["b"] * 40,
    )
    data = one_row_each(acts)
    assert "without category 'a' 0 positive groups are left" in unfit(data, n_folds=3)


def test_prompts_without_a_category_are_fitted_on_and_never_left_out(make):
    draw = torch.Generator().manual_seed(8)
    values = torch.randn(120, 1, 4, generator=draw)
    values[:60, :, 0] += 2
    acts = make(
        values,
        [1] * 60 + [0] * 60,
        [f"pair{i % 60}" for i in range(120)],
        categories=(["a"] * 20 + ["b"] * 20 + [""] * 20) * 2,
    )
    left = probe(acts, "ridge", **QUICK).left_out
    assert left is not None and [c.name for c in left.categories] == ["a", "b"]
    assert [c.n for c in left.categories] == [40, 40]


def test_categories_of_one_class_are_an_error_where_they_are_asked_for(make, plant):
    acts = plant(20, categories=["harmful"] * 20 + ["harmless"] * 20)
    with pytest.raises(ActivationError, match=r"2 of 2 categories have one class.*'harmful'"):
        probe(acts, "ridge", categories=True, **QUICK)
    found = probe(acts, "ridge", **QUICK)
    assert found.left_out is None
    assert any("categories have one class" in note for note in found.notes)
    assert not any("categor" in n for n in probe(acts, "ridge", categories=False, **QUICK).notes)


def test_no_categories_are_an_error_where_they_are_asked_for(plant):
    with pytest.raises(ActivationError, match="needs at least 2 of them; these prompts have 0"):
        probe(plant(20), "ridge", categories=True, **QUICK)


def test_recipes_are_what_left_out_categories_choose_from(make):
    found = probe(by_category(make, specific=False), "ridge", penalties=[1.0, 100.0], **QUICK)
    assert found.left_out is not None
    known = recipes("ridge", [1.0, 100.0])[0].penalties
    assert all(c.choice.candidate.penalty in known for c in found.left_out.categories)

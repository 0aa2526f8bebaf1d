"""Erased on three disjoint splits: chance for a linear probe, and what a kernel still reads."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from steerkit.activations import Activations
from steerkit.errors import ActivationError
from steerkit.extraction.eraser import Eraser
from steerkit.extraction.erasure import check_erasure
from steerkit.statistics import auc

Make = Callable[..., Activations]


def correlated(make: Make, n: int = 450, d: int = 10, *, bent: bool = False) -> Activations:
    """Pairs of correlated rows; `bent` also gives the label away by the spread of one axis."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(d, d, generator=generator)
    rows = torch.randn(2, n, d, generator=generator)
    if bent:
        rows[0, :, 3] *= 4
    rows = rows @ mix.T
    return make(rows[0] + 1.5 * torch.randn(d, generator=generator), rows[1], paired=True)


def test_a_fresh_linear_probe_is_at_chance_with_less_change_than_ablation(make: Make) -> None:
    found = check_erasure(correlated(make, n=1500, d=6), 0)
    before, after, ablated = (
        found[name] for name in ("untouched", "erased", "mean difference ablated")
    )
    assert before.linear.low > 0.9 and before.nonlinear.low > 0.9 and before.change == 0
    # Class means of 500 rows each in 6 dimensions lie sqrt(12 / 500) = 0.155 apart by chance.
    assert found.floor == pytest.approx(0.5436, abs=1e-3)
    assert after.linear.low < found.floor and after.linear.high < 0.6
    assert after.nonlinear.low < found.floor and after.nonlinear.high < 0.6, "all was linear"
    assert 0 < after.change < ablated.change
    assert found.n_rows == (1000, 1000, 1000)


def test_a_kernel_probe_still_reads_what_is_not_linear(make: Make) -> None:
    after = check_erasure(correlated(make, bent=True), 0)["erased"]
    assert after.linear.high < 0.65
    assert after.nonlinear.low > 0.65


def test_on_the_rows_of_the_fit_folds_fall_below_chance_for_no_reason(make: Make) -> None:
    """The known failure that three splits avoid."""
    acts = correlated(make, n=40, d=30)
    x = Eraser.fit(acts, 0)(acts.at(0)).numpy()
    y = acts.row_labels.numpy()
    held = np.zeros(len(y))
    for fold in range(5):
        out = np.arange(len(y)) % 5 == fold
        held[out] = (
            LogisticRegression(max_iter=2000).fit(x[~out], y[~out]).decision_function(x[out])
        )
    assert auc(held, y) < 0.3


def test_it_shows_itself(make: Make) -> None:
    found = check_erasure(correlated(make, n=60), 0)
    assert "eraser of rank 1 fitted on 40 rows, probes on 40, tested on 40" in repr(found)
    assert [row["edit"] for row in found.table()][1] == "erased"
    page = found._repr_html_()
    assert page.count("<tr>") == 4 and "<td>mean difference ablated</td>" in page
    assert found.headline in page
    data = found.to_json()
    assert data["n_rows"] == [40, 40, 40] and data["rows"][1]["linear"]["unit"] == "AUC"


def test_splits_never_cut_a_group(make: Make) -> None:
    acts = correlated(make, n=60)
    assert check_erasure(acts, 0)["erased"].linear.n == 20, "pairs"


def test_too_few_groups_for_three_splits(make: Make) -> None:
    x = torch.randn(8, 4)
    with pytest.raises(ActivationError, match="at least three groups with each label"):
        check_erasure(make(x[:4], x[4:], groups=["a", "a", "b", "b"] * 2), 0)

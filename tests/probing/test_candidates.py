"""Fits of many penalties and labellings at once equal single fits of other libraries."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import Ridge as SklearnRidge
from torch.testing import assert_close

from steerkit.errors import MethodError
from steerkit.extraction.methods import METHODS
from steerkit.extraction.penalty import feature_size
from steerkit.extraction.training import Training
from steerkit.probing.candidates import GRIDS, Turned, recipes, scaled, spanned


@pytest.fixture
def rows() -> Training:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(40, 6, generator=draw, dtype=torch.float64) * torch.arange(1, 7) + 5
    return Training.of(x, [f"prompt{i}" for i in range(40)])


@pytest.fixture
def labels() -> torch.Tensor:
    draw = torch.Generator().manual_seed(4)
    return (torch.rand(40, 3, generator=draw) < 0.5).long()


def columns(rows, labels, name, penalties=None):
    """Scores `[row penalty labelling]` of the rows themselves, and the penalties."""
    (recipe,) = recipes(name, penalties)
    scores = scaled(rows, rows.x) @ recipe.fit(rows, labels, exact=True, seed=0)
    return scores.reshape(len(rows), -1, labels.shape[1]), recipe.penalties


def test_logistic_columns_are_scikit_learns_optimum(rows, labels):
    found, penalties = columns(rows, labels, "logistic")
    x = ((rows.x - rows.mean) / feature_size(rows)).numpy()
    for p, c in enumerate(penalties):
        for k in range(labels.shape[1]):
            one = LogisticRegression(C=c, tol=1e-12, max_iter=20000).fit(x, labels[:, k])
            expected = torch.from_numpy(one.decision_function(x) - one.intercept_)
            assert_close(found[:, p, k], expected, rtol=1e-6, atol=1e-6)


def test_ridge_columns_are_scikit_learns_optimum(rows, labels):
    found, penalties = columns(rows, labels, "ridge")
    x = ((rows.x - rows.mean) / feature_size(rows)).numpy()
    for p, penalty in enumerate(penalties):
        for k in range(labels.shape[1]):
            one = SklearnRidge(alpha=penalty).fit(x, 2 * labels[:, k].numpy() - 1.0)
            expected = torch.from_numpy(one.predict(x) - one.intercept_)
            assert_close(found[:, p, k], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["logistic", "svm"])
def test_loose_fits_rank_as_exact_ones_do(rows, labels, name):
    (recipe,) = recipes(name, None)
    exact, loose = (
        scaled(rows, rows.x) @ recipe.fit(rows, labels, exact=exact, seed=0)
        for exact in (True, False)
    )
    for one, other in zip(exact.T, loose.T, strict=True):
        assert np.corrcoef(one, other)[0, 1] > 0.999


@pytest.mark.parametrize(
    "name", ["lda", "mean_difference", "whitened_mean_difference", "leace", "pca"]
)
def test_other_methods_are_the_extractors_own(rows, labels, name):
    found, penalties = columns(rows, labels, name)
    assert penalties == (None,)
    own = METHODS[name](rows.x, labels[:, 1], rows.groups, seed=0)
    assert_close(found[:, 0, 1], (rows.x - rows.mean) @ own)


@pytest.mark.parametrize("name", ["logistic", "ridge", "svm", "lda", "leace", "mean_difference"])
def test_rows_fewer_than_axes_are_turned_once_and_give_the_same(labels, name):
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(50, 90, generator=draw, dtype=torch.float64) + 3
    groups = tuple(f"prompt{i}" for i in range(40))
    (recipe,) = recipes(name, None)
    assert spanned(x).shape == (50, 50)
    whole, turned = Training(x[:40], groups), Turned(spanned(x)[:40], groups, 90)
    one = scaled(whole, x[40:]) @ recipe.fit(whole, labels, exact=True, seed=0)
    other = scaled(turned, spanned(x)[40:]) @ recipe.fit(turned, labels, exact=True, seed=0)
    assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_the_strongest_penalty_comes_first():
    assert recipes("logistic", [1.0, 0.1, 0.1])[0].penalties == (0.1, 1.0)
    assert recipes("ridge", [1.0, 10.0])[0].penalties == (10.0, 1.0)
    assert list(GRIDS["ridge"]) == sorted(GRIDS["ridge"], reverse=True)


@pytest.mark.parametrize(
    ("methods", "penalties", "said"),
    [
        ("logistc", None, "did you mean 'logistic'"),
        ((), None, "no probe method"),
        (("lda", "lda"), None, "once each"),
        ("lda", [1.0], "takes no penalty"),
        ("logistic", [0.0], "positive"),
        (("logistic", "ridge"), [1.0], "different things"),
    ],
)
def test_what_cannot_be_probed_with_says_so(methods, penalties, said):
    with pytest.raises(MethodError, match=said):
        recipes(methods, penalties)

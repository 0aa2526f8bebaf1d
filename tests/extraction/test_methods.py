"""Laws that every registered extractor keeps, by being registered."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from steerkit.activations import Activations
from steerkit.errors import ActivationError, MethodError
from steerkit.extraction import METHODS, Training, extract
from steerkit.extraction.methods import fit_columns
from steerkit.protocols import Extractor
from steerkit.statistics import permutations

every_method = pytest.mark.parametrize("name", METHODS.names())


def rows(n: int = 40, d: int = 12, *, seed: int = 0) -> tuple[Tensor, Tensor, list[str]]:
    """Pairs that share a part, positives moved along the first axis."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * n, d, generator=generator, dtype=torch.float64)
    x += torch.randn(n, d, generator=generator, dtype=torch.float64).repeat(2, 1)
    x[:n, 0] += 4
    labels = torch.tensor([1] * n + [0] * n)
    return x, labels, [f"pair{i % n}" for i in range(2 * n)]


def lone(groups: list[str]) -> list[str]:
    return [f"prompt{i}" for i in range(len(groups))]


def skip_unpaired(name: str, paired: bool) -> None:
    """Methods that read pairs refuse anything else, which is tested beside them."""
    if not paired and getattr(METHODS[name], "needs_pairs", False):
        pytest.skip(f"{name} reads pairs only")


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a, b, dim=0))


def test_the_methods_are_found_without_being_listed() -> None:
    assert METHODS.names() == (
        "ccs",
        "lda",
        "leace",
        "logistic",
        "mean_difference",
        "pca",
        "ridge",
        "svm",
        "whitened_mean_difference",
    )


def test_an_unknown_method_says_what_was_meant() -> None:
    with pytest.raises(MethodError, match="no extraction method named 'mean_diference'; did you"):
        METHODS["mean_diference"]


@every_method
def test_it_declares_what_it_is(name: str) -> None:
    method = METHODS[name]
    assert isinstance(method.supervised, bool)
    assert len(method.estimates) > 20
    assert "Source:" in (type(method).__doc__ or ""), "it names its paper"


@every_method
@pytest.mark.parametrize("paired", [True, False])
def test_an_isotropic_plant_is_recovered(name: str, paired: bool) -> None:
    skip_unpaired(name, paired)
    x, labels, groups = rows(n=300)
    w = METHODS[name](x, labels, groups if paired else lone(groups), seed=0)
    assert w.shape == (12,) and w.dtype == torch.float64 and torch.isfinite(w).all()
    assert cosine(w, torch.eye(12, dtype=torch.float64)[0]) > 0.97


@every_method
@pytest.mark.parametrize("paired", [True, False])
def test_swapping_the_labels_flips_a_supervised_direction(name: str, paired: bool) -> None:
    skip_unpaired(name, paired)
    x, labels, groups = rows()
    groups = groups if paired else lone(groups)
    w = METHODS[name](x, labels, groups, seed=0)
    swapped = METHODS[name](x, 1 - labels, groups, seed=0)
    assert cosine(w, swapped) == pytest.approx(-1.0 if METHODS[name].supervised else 1.0, abs=1e-6)


@every_method
@pytest.mark.parametrize("paired", [True, False])
def test_the_order_of_rows_does_not_matter(name: str, paired: bool) -> None:
    skip_unpaired(name, paired)
    x, labels, groups = rows()
    groups = groups if paired else lone(groups)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))
    w = METHODS[name](x, labels, groups, seed=0)
    moved = METHODS[name](x[order], labels[order], [groups[i] for i in order], seed=0)
    assert cosine(w, moved) == pytest.approx(1.0, abs=1e-6)


@every_method
def test_the_same_seed_gives_the_same_direction(name: str) -> None:
    x, labels, groups = rows()
    first = METHODS[name](x, labels, groups, seed=7)
    assert torch.equal(first, METHODS[name](x, labels, groups, seed=7))
    assert cosine(first, METHODS[name](x, labels, groups, seed=8)) > 0.9


@every_method
def test_rows_are_left_as_they_were(name: str) -> None:
    x, labels, groups = rows()
    before = x.clone(), labels.clone()
    METHODS[name](x, labels, groups, seed=0)
    assert torch.equal(x, before[0]) and torch.equal(labels, before[1])


@every_method
@pytest.mark.parametrize("paired", [True, False])
def test_moving_and_turning_the_stream_moves_and_turns_the_direction(
    name: str, paired: bool
) -> None:
    skip_unpaired(name, paired)
    x, labels, groups = rows()
    groups = groups if paired else lone(groups)
    turn = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    w = METHODS[name](x, labels, groups, seed=0)
    turned = METHODS[name](x @ turn + 100.0, labels, groups, seed=0)
    assert cosine(w @ turn, turned) == pytest.approx(1.0, abs=1e-5)


@every_method
@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("d", [12, 90])
def test_many_labellings_at_once_equal_one_at_a_time(
    name: str, paired: bool, d: int, generator: Callable[..., object]
) -> None:
    skip_unpaired(name, paired)
    x, labels, groups = rows(n=20, d=d)
    groups = groups if paired else lone(groups)
    columns = torch.from_numpy(permutations(labels.tolist(), groups, 6, generator(0)))
    columns = torch.cat([labels[:, None], columns], 1)
    together = fit_columns(METHODS[name], Training.of(x, groups), columns, seed=0)
    for k in range(columns.shape[1]):
        if name in ("logistic", "svm") and k:
            break  # the null keeps the penalty that the observed labels chose
        alone = METHODS[name](x, columns[:, k], groups, seed=0)
        assert cosine(together[:, k], alone) == pytest.approx(1.0, abs=1e-6)


@every_method
def test_features_that_never_vary_are_not_read(name: str) -> None:
    x, labels, groups = rows()
    constant = torch.tensor([0.0, 7.0, -1e4], dtype=torch.float64).expand(len(x), 3)
    w = METHODS[name](torch.cat([x, constant], 1), labels, groups, seed=0)
    assert torch.isfinite(w).all() and float(w[12:].abs().max()) < 1e-9 * float(w.norm())


@every_method
def test_one_class_and_values_that_are_not_finite_are_refused_by_name(
    name: str, plant: Callable[..., Activations]
) -> None:
    with pytest.raises(ActivationError, match="all 6 prompts are positive; a direction needs both"):
        extract(plant(6).select(range(6)), name, progress=False)
    broken = plant(6)
    broken.values[2, 0, 1] = float("inf")  # after the check that making activations does
    with pytest.raises(ActivationError, match="at resid_post@0 is NaN or infinite, first for"):
        extract(broken, name, progress=False)


@every_method
def test_fewer_pairs_than_folds_are_refused_with_the_number_that_would_do(
    name: str, plant: Callable[..., Activations]
) -> None:
    with pytest.raises(
        ActivationError, match=r"5 folds need 5 groups with positive prompts.*n_folds=3"
    ):
        extract(plant(3), name, progress=False)
    found = extract(plant(3), name, n_folds=3, n_permutations=3, n_random=3, progress=False)
    assert found[0].provenance["n_folds"] == 3


def test_an_extractor_without_a_fast_path_is_fitted_column_by_column() -> None:
    class Medians:
        supervised = True
        estimates = "difference of the class medians"

        def __call__(self, x: Tensor, labels: Tensor, groups: list[str], *, seed: int) -> Tensor:
            return x[labels == 1].median(0).values - x[labels == 0].median(0).values

    method: Extractor = Medians()
    x, labels, groups = rows()
    both = torch.stack([labels, 1 - labels], 1)
    w = fit_columns(method, Training.of(x, groups), both, seed=0)
    assert torch.equal(w[:, 0], method(x, labels, groups, seed=0))
    assert torch.equal(w[:, 0], -w[:, 1])


@pytest.fixture
def generator() -> Callable[..., object]:
    import numpy as np

    return np.random.default_rng

"""Laws that every method of subspaces keeps, and what each one estimates, in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from steerkit.activations import Activations
from steerkit.errors import MethodError
from steerkit.extraction import METHODS, SPANS, Training
from steerkit.extraction.ridge import GRID, left_out_error
from steerkit.extraction.spans import Labelling, orthonormal
from steerkit.statistics import permutations

Make = Callable[..., Activations]
every_span = pytest.mark.parametrize("name", SPANS.names())
K = 3
SAME = {"inlp": "ridge"}
"""The direction that a method of another name gives with one axis."""


def planted(
    n: int = 90, d: int = 16, *, size: float = 4.0, seed: int = 0, alike: bool = False
) -> tuple:
    """Pairs of four categories; each is moved along its own vector of one 3-dimensional space.

    `alike` moves all along the same vector of it, which is what iterated probes can read: the
    noise differs between the planted axes, so each probe leaves something to the next.
    """
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q.T
    moves = torch.cat([torch.eye(K), torch.full((1, K), 0.5)]).double()
    if alike:
        moves = torch.ones(4, K, dtype=torch.float64)
    categories = torch.arange(n) % 4
    width = torch.ones(d, dtype=torch.float64)
    width[:K] = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    noise = torch.randn(2 * n, d, generator=generator, dtype=torch.float64) * width
    noise[:n, :K] += size * moves[categories]
    x = noise @ basis + 3
    labels = torch.tensor([1] * n + [0] * n)
    groups = [f"pair{i % n}" for i in range(2 * n)]
    return x, labels, groups, categories.repeat(2), basis[:K]


def angle(a: Tensor, b: Tensor) -> float:
    """Largest principal angle between the spans of columns of `a` and of `b`, in radians."""
    qa, qb = (torch.linalg.qr(m).Q for m in (a, b))
    return float(torch.linalg.matrix_norm(qa - qb @ (qb.T @ qa), 2).clamp(max=1).asin())


def fit(name: str, k: int, *, paired: bool = True, **more) -> tuple[Tensor, tuple]:
    x, labels, groups, categories, _ = data = planted(**more)
    groups = groups if paired else [f"prompt{i}" for i in range(len(x))]
    axes = SPANS[name](Training.of(x, groups), Labelling.of(labels, categories), k)
    return axes[0], data


def test_the_methods_are_found_without_being_listed() -> None:
    assert SPANS.names() == ("inlp", "leace", "mean_difference", "pca")
    with pytest.raises(MethodError, match="no subspace method named 'pcs'; did you mean 'pca'"):
        SPANS["pcs"]


@every_span
@pytest.mark.parametrize("paired", [True, False])
def test_axes_are_orthonormal_and_nested(name: str, paired: bool) -> None:
    axes, _ = fit(name, K, paired=paired)
    assert axes.shape == (16, K) and axes.dtype == torch.float64
    assert torch.allclose(axes.T @ axes, torch.eye(K, dtype=axes.dtype), atol=1e-12)
    fewer, _ = fit(name, 2, paired=paired)
    assert angle(fewer, axes[:, :2]) < 1e-9, "two axes span what the first two of three do"


@every_span
@pytest.mark.parametrize("paired", [True, False])
def test_a_planted_subspace_is_recovered(name: str, paired: bool) -> None:
    axes, (*_, basis) = fit(name, K, paired=paired, n=20_000, alike=name == "inlp")
    assert angle(axes, basis.T) < 0.12


@every_span
def test_the_order_of_rows_does_not_matter_and_nothing_is_drawn(name: str) -> None:
    axes, (x, labels, groups, categories, _) = fit(name, K)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    moved = SPANS[name](
        Training.of(x[order], [groups[i] for i in order]),
        Labelling.of(labels[order], categories[order]),
        K,
    )[0]
    assert angle(axes, moved) < 1e-9
    assert torch.equal(axes, fit(name, K)[0])


@every_span
@pytest.mark.parametrize("paired", [True, False])
def test_one_axis_is_the_direction_of_the_method(name: str, paired: bool) -> None:
    x, labels, groups, _, _ = planted()
    groups = groups if paired else [f"prompt{i}" for i in range(len(x))]
    axis = SPANS[name](Training.of(x, groups), Labelling.of(labels), 1)[0, :, 0]
    direction = METHODS[SAME.get(name, name)](x, labels, groups, seed=0)
    cosine = float(torch.cosine_similarity(axis, direction, dim=0))
    assert abs(cosine) == pytest.approx(1.0, abs=1e-12)


@every_span
@pytest.mark.parametrize("paired", [True, False])
def test_many_labellings_at_once_equal_one_at_a_time(name: str, paired: bool) -> None:
    import numpy as np

    x, labels, groups, categories, _ = planted(n=40)
    groups = groups if paired else [f"prompt{i}" for i in range(len(x))]
    columns = permutations(labels.tolist(), groups, 4, np.random.default_rng(0))
    columns = torch.cat([labels[:, None], torch.from_numpy(columns)], 1)
    rows = Training.of(x, groups)
    together = SPANS[name](rows, Labelling.of(columns, categories), K)
    for k in range(5):
        alone = SPANS[name](rows, Labelling.of(columns[:, k], categories), K)[0]
        assert angle(together[k], alone) < 1e-7


@every_span
def test_a_turned_and_moved_stream_turns_the_subspace(name: str) -> None:
    axes, (x, labels, groups, categories, _) = fit(name, K)
    turn = torch.linalg.qr(
        torch.randn(16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ).Q
    rows = Training.of(x @ turn + 100, groups)
    turned = SPANS[name](rows, Labelling.of(labels, categories), K)[0]
    assert angle(turn.T @ axes, turned) < 1e-6


def test_as_many_axes_as_there_is_rank() -> None:
    x, labels, groups, categories, _ = planted(n=10, d=16)
    rows = Training.of(x, groups)
    none = Labelling.of(labels)
    assert SPANS["mean_difference"](rows, none, 5).shape[2] == 1
    assert SPANS["leace"](rows, Labelling.of(labels, categories), 9).shape[2] == 4
    assert SPANS["pca"](rows, none, 99).shape[2] == 10, "ten pairs, ten differences"
    narrow = torch.cat([x[:, :2], x[:, :2] @ torch.ones(2, 2, dtype=x.dtype)], 1)
    assert SPANS["inlp"](Training.of(narrow, groups), none, 4).shape[2] == 2


def test_mean_differences_are_the_leading_singular_vectors_of_the_categories() -> None:
    axes, (x, labels, _, categories, _) = fit("mean_difference", 2)
    deltas = torch.stack(
        [
            x[(labels == 1) & (categories == c)].mean(0)
            - x[(labels == 0) & (categories == c)].mean(0)
            for c in range(4)
        ]
    )
    assert angle(axes, torch.linalg.svd(deltas)[2][:2].T) < 1e-9


def test_what_leace_spans_is_what_the_eraser_of_the_categories_reads(make: Make) -> None:
    from steerkit.extraction import Eraser

    x, labels, groups, categories, _ = planted()
    labelling = Labelling.of(labels, categories)
    axes = SPANS["leace"](Training.of(x.float(), groups), labelling, 4)[0]
    acts = make(x[:90], x[90:], groups=groups)
    eraser = Eraser.fit(acts, 0, concepts=labelling.contrasts()[:, :, 0].T)
    assert eraser.rank == 4 and angle(axes, eraser.read.T) < 1e-6
    erased = labelling.differences(eraser(acts.at(0).double()))
    assert float(erased.abs().max()) < 1e-9, "the label is gone in every category"


@pytest.mark.parametrize("k", [1, 4])
def test_unpaired_components_are_those_of_the_whole_matrix(k: int) -> None:
    axes, (x, labels, *_) = fit("pca", k, paired=False, size=1.0)
    high, low = x[labels == 1], x[labels == 0]
    within = (high - high.mean(0)).T @ (high - high.mean(0))
    within += (low - low.mean(0)).T @ (low - low.mean(0))
    delta = high.mean(0) - low.mean(0)
    second = 2 * within / len(x) + torch.outer(delta, delta)
    assert angle(axes, torch.linalg.eigh(second)[1][:, -k:]) < 1e-7


def test_components_survive_axes_that_the_labels_do_not_touch() -> None:
    """A mean difference of exactly zero along most principal axes, and rows that repeat."""
    base = torch.diag(torch.arange(6.0, 0.0, -1, dtype=torch.float64))
    x = torch.cat([base, -base] * 2)
    labels = torch.tensor([1] * 12 + [0] * 12)
    x[labels == 1, 5] += 0.5
    rows = Training.of(x, [f"prompt{i}" for i in range(24)])
    axes = SPANS["pca"](rows, Labelling.of(labels), 3)[0]
    assert angle(axes, torch.eye(6, dtype=torch.float64)[:, :3]) < 1e-6


def test_each_iterated_probe_is_ridge_on_the_rows_that_are_left() -> None:
    axes, (x, labels, groups, *_) = fit("inlp", K)
    rows = Training.of(x, groups)
    target = 2 * labels.double() - 1
    chosen = GRID[int(left_out_error(rows, (target - target.mean())[:, None]).argmin())]
    size = float((rows.spread.sum() / x.numel()).sqrt())
    left = (x - x.mean(0)) / size
    for axis in axes.T:
        gram = left.T @ left + chosen * torch.eye(16, dtype=torch.float64)
        w = torch.linalg.solve(gram, left.T @ target)
        cosine = float(torch.cosine_similarity(w, axis, dim=0))
        assert abs(cosine) == pytest.approx(1, abs=1e-9)
        left = left - torch.outer(left @ axis, axis)


def test_a_category_that_a_labelling_leaves_one_sided_is_held_against_all_rows() -> None:
    labels = torch.tensor([1, 0, 1, 0])
    weights = Labelling.of(labels, torch.tensor([0, 0, 1, 2])).contrasts()[:, :, 0]
    expected = [[1.0, -1.0, 0.0, 0.0], [0.0, -0.5, 1.0, -0.5], [0.5, 0.0, 0.5, -1.0]]
    assert torch.allclose(weights, torch.tensor(expected, dtype=torch.float64))


def test_orthonormalising_keeps_the_order_and_the_signs() -> None:
    vectors = torch.tensor([[[2.0, 1.0], [0.0, -3.0], [0.0, 0.0]]], dtype=torch.float64)
    expected = torch.tensor([[1.0, 0.0], [0.0, -1.0], [0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(orthonormal(vectors)[0], expected)

"""Moments fed batch by batch equal those of all rows at once, and so do their directions."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from steerkit.activations import Activations
from steerkit.errors import ActivationError, DirectionError, MethodError
from steerkit.extraction import METHODS, Moments, Training, extract, extract_from_moments
from steerkit.extraction.class_moments import ClassMoments
from steerkit.extraction.ridge import GRID, left_out_error
from steerkit.extraction.streaming import ESTIMATORS, Sums
from steerkit.site import Site

Make = Callable[..., Activations]


def wide(
    make: Make, n: int = 60, d: int = 10, *, offset: float = 0.0, paired: bool = True
) -> Activations:
    """Correlated rows at two sites, far from zero if wanted."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(d, d, generator=generator)
    rows = torch.randn(2, n, 2, d, generator=generator) @ mix.T
    rows[1] += torch.randn(n, 2, d, generator=generator) + offset
    rows[0] += 1.5 + offset
    return make(rows[0], rows[1], paired=paired)


def shuffled(acts: Activations, seed: int) -> Activations:
    order = torch.randperm(len(acts), generator=torch.Generator().manual_seed(seed))
    return acts.select(order)


def two_pass(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Mean, scatter, skew, fourth of rows, in extended precision."""
    x = x.astype(np.longdouble)
    mean = x.mean(0)
    u = x - mean
    squared = (u**2).sum(1)
    return mean, u.T @ u, u.T @ squared, float((squared**2).sum())


def relative(a: object, b: object) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("n_rows", [1, 7, 1000])
def test_batches_of_any_size_give_what_two_passes_give(
    make: Make, offset: float, n_rows: int
) -> None:
    """At an offset of 1e4 sums of squares would lose eight digits; nothing is lost."""
    acts = shuffled(wide(make, offset=offset), 1)
    moments = Moments.of(acts, n_rows=n_rows)
    assert moments.n == (60, 60)
    for site in (0, 1):
        for label in (0, 1):
            x = acts.values[acts.row_labels == label][:, site].double().numpy()
            found = moments.parts[site][label]
            mean, scatter, skew, fourth = two_pass(x)
            assert found.n == 60 and relative(found.mean, mean) < 1e-14
            # The mean itself carries 1e-16 of the offset.
            assert relative(found.scatter, scatter) < 1e-11
            assert relative(found.skew, skew) < 1e-9
            assert found.fourth == pytest.approx(fourth, rel=1e-10)


def test_sums_of_squares_would_not_do() -> None:
    """The known failure that centring avoids."""
    x = 1e4 + torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    naive = x.T @ x - len(x) * torch.outer(x.mean(0), x.mean(0))
    _, scatter, _, _ = two_pass(x.numpy())
    assert relative(naive, scatter) > 1e3 * relative(ClassMoments.of(x).scatter, scatter)


def test_moved_to_another_point_the_sums_are_those_about_it() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 4, generator=generator, dtype=torch.float64) ** 3
    centre = torch.randn(4, generator=generator, dtype=torch.float64)
    moved, u = ClassMoments.of(x).about(centre), x - centre
    squared = (u**2).sum(1)
    assert torch.allclose(moved.scatter, u.T @ u, rtol=1e-12)
    assert torch.allclose(moved.skew, u.T @ squared, rtol=1e-12)
    assert moved.fourth == pytest.approx(float((squared**2).sum()), rel=1e-12)


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("d, offset", [(10, 0.0), (10, 1e4), (160, 3.0)])
def test_directions_equal_those_of_the_stored_rows(
    name: str, paired: bool, d: int, offset: float, make: Make
) -> None:
    acts = shuffled(wide(make, d=d, offset=offset, paired=paired), 2)
    moments = Moments.of(acts, pairs=True, n_rows=11)
    for site in (0, 1):
        x, y = acts.values[:, site].double(), acts.row_labels
        penalty = 0.0
        if name == "ridge":
            target = (2 * y.double() - 1)[:, None]
            errors = left_out_error(Training.of(x, acts.row_groups), target - target.mean())
            penalty = GRID[int(errors.argmin())]
        stored = METHODS[name](x, y, acts.row_groups, seed=0)
        streamed = ESTIMATORS[name](Sums.of(moments, site, penalty))
        # At a large offset it is the stored route's mean difference that loses digits.
        difference = streamed / streamed.norm() - stored / stored.norm()
        assert float(difference.norm()) < 1e-10 * (100 if offset > 100 else 1)


def test_they_are_directions_like_those_of_extract_but_not_scored(make: Make) -> None:
    acts = wide(make)
    names = ["mean_difference", "whitened_mean_difference", "lda", "leace", "pca"]
    streamed = extract_from_moments(Moments.of(acts, pairs=True), names, concept="it")
    stored = extract(acts, names, n_folds=0, progress=False)
    assert [str(a) for a in streamed] == [str(b) for b in stored]
    for a, b in zip(streamed, stored, strict=True):
        assert torch.allclose(a.unit, b.unit, atol=1e-6)
        assert a.scale == pytest.approx(b.scale, rel=1e-6)
        assert a.negative_mean == pytest.approx(b.negative_mean, rel=1e-4)
        assert (a.scores, a.polarity, a.concept) == (None, 0, "it")
        assert "held-out scores come from another pass" in a.provenance["from"]
        assert a.provenance["n_pairs"] == 60 and a.model == b.model


def test_parts_summed_apart_are_joined_in_any_order(make: Make) -> None:
    """Also where mates of a pair were summed in different parts."""
    acts = shuffled(wide(make, n=40), 3)
    parts = [Moments.of(acts.select(range(i, 80, 4)), pairs=True) for i in range(4)]
    assert sum(p.pairs.n for p in parts if p.pairs) < 40
    whole = Moments.of(acts, pairs=True)
    a, b, c, d = parts
    for joined in (a.merge(b).merge(c).merge(d), d.merge(b.merge(a)).merge(c)):
        assert joined.n == whole.n and joined.pairs is not None and whole.pairs is not None
        assert joined.pairs.n == 40 and not joined.pairs.waiting
        assert relative(joined.pairs.second, whole.pairs.second) < 1e-12
        for name in ESTIMATORS:
            one, two = (ESTIMATORS[name](Sums.of(m, 1, 100.0)) for m in (joined, whole))
            assert relative(one, two) < 1e-10
    assert a.n != whole.n, "merging makes new moments"


def test_memory_does_not_grow_with_the_rows(make: Make) -> None:
    short, long = (Moments.of(wide(make, n=n), pairs=True, n_rows=16) for n in (40, 400))
    assert short.n_bytes == long.n_bytes
    assert long.n_bytes == 8 * 2 * (2 * (10 * 10 + 2 * 10) + 10 * 10)


def test_a_mapped_file_and_batches_of_captures(make: Make, tmp_path: Path) -> None:
    acts = wide(make)
    mapped = Activations.load(acts.save(tmp_path / "acts.safetensors"))
    batches = (acts.select(range(i, i + 30)) for i in range(0, 120, 30))
    one, two = Moments.of(mapped, n_rows=17), Moments.of(batches)
    assert relative(one.parts[1][1].scatter, two.parts[1][1].scatter) < 1e-12
    only = Moments.of(mapped, [1])
    assert only.sites == (Site(1),)
    assert torch.equal(only.parts[0][0].scatter, Moments.of(acts).parts[1][0].scatter)


def test_saved_half_way_and_gone_on_with(make: Make, tmp_path: Path) -> None:
    acts = shuffled(wide(make, n=30), 4)
    half = Moments.of(acts.select(range(25)), pairs=True)
    again = Moments.load(half.save(tmp_path / "moments.safetensors"))
    assert repr(again) == repr(half) and "rows without mates" in repr(half)
    again.update(acts, torch.arange(25, 60))
    whole = Moments.of(acts, pairs=True)
    assert again.pairs is not None and again.pairs.n == 30
    for name in ESTIMATORS:
        one, two = (ESTIMATORS[name](Sums.of(m, 0, 100.0)) for m in (again, whole))
        assert relative(one, two) < 1e-10
    assert again.contrasts == ("c0ffee",)


@pytest.mark.parametrize(
    "groups",
    [
        ["a", "a", "b", "b", "a", "b", "b", "b"],  # several rows of both labels: no pairs at all
        ["a", "a", "b", "c", "a2", "a2", "b", "c"],  # two pairs, and groups of one label
    ],
)
@pytest.mark.parametrize("order", [range(8), [7, 3, 0, 4, 5, 1, 2, 6]])
@pytest.mark.parametrize("split", [3, 8])
def test_what_counts_as_a_pair_is_what_extract_says(
    groups: list[str], order: list[int], split: int, make: Make
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 5, generator=generator)
    acts = make(x[:4] + 1, x[4:], groups=groups).select(list(order))
    parts = [acts.select(range(split)), acts.select(range(split, 8))]
    moments = Moments.of(parts[0], pairs=True)
    if split < 8:
        moments = moments.merge(Moments.of(parts[1], pairs=True))
    stored = METHODS["pca"](acts.at(0).double(), acts.row_labels, acts.row_groups, seed=0)
    assert relative(ESTIMATORS["pca"](Sums.of(moments, 0, 0.0)), stored) < 1e-9
    assert moments.pairs is not None and moments.pairs.n == (0 if "a2" not in groups else 2)


def test_features_that_never_vary(make: Make) -> None:
    acts = wide(make)
    values = acts.values.clone()
    values[:, :, 3] = 7.0
    flat = replace(acts, values=values)
    moments = Moments.of(flat, pairs=True)
    for name in ESTIMATORS:
        w = ESTIMATORS[name](Sums.of(moments, 0, 1.0))
        assert torch.isfinite(w).all() and float(w[3].abs()) < 1e-9 * float(w.norm())


def test_refused(make: Make, model_info: Callable) -> None:
    acts = wide(make, n=10)
    moments = Moments.of(acts)
    with pytest.raises(MethodError, match=r"'logistic' cannot be had from moments.*pca, ridge"):
        extract_from_moments(moments, ["lda", "logistic"])
    with pytest.raises(MethodError, match="ridge from moments needs a penalty above 0"):
        extract_from_moments(moments, "ridge")
    with pytest.raises(MethodError, match=r"pca reads the differences within pairs.*pairs=True"):
        extract_from_moments(moments, "pca")
    with pytest.raises(MethodError, match="no extraction method named 'ldr'; did you mean 'lda'"):
        extract_from_moments(moments, "ldr")
    one = Moments.of(acts.select(range(10)))
    with pytest.raises(ActivationError, match="no negative rows; a direction needs both sides"):
        extract_from_moments(one)
    same = replace(acts, values=acts.values[:10].repeat(2, 1, 1))
    with pytest.raises(DirectionError, match="class means at resid_post@0 are the same"):
        extract_from_moments(Moments.of(same))
    other = replace(acts, info=model_info(10, fingerprint="e" * 64))
    with pytest.raises(ActivationError, match=r"these moments are of toy .* sum them apart"):
        moments.update(other)
    with pytest.raises(ActivationError, match="agree; got Moments"):
        moments.merge(Moments.of(other))
    with pytest.raises(ActivationError, match="no resid_post@1; there are resid_post@0"):
        moments.update(replace(acts, values=acts.values[:, :1], sites=acts.sites[:1]))
    with pytest.raises(ActivationError, match="have no labels; capture a Contrast"):
        Moments.of(replace(acts, labels=()))
    with pytest.raises(ActivationError, match="no batches to sum"):
        Moments.of([])
    broken = wide(make, n=10)
    broken.values[3, 1, 0] = float("inf")  # after the check that making activations does
    before = moments.n
    with pytest.raises(ActivationError, match="at resid_post@1 is NaN or infinite, first for"):
        moments.update(broken)
    assert moments.n == before, "nothing was added"

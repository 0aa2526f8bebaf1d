"""Moments by class and group: any split and order of summing gives the directions of the rows."""

import itertools
from collections.abc import Callable

import pytest
import torch

from steerkit.activations import Activations
from steerkit.errors import ActivationError
from steerkit.extraction import GroupMoments, Moments, extract_from_moments
from steerkit.extraction.streaming import ESTIMATORS

Make = Callable[..., Activations]
METHODS = tuple(sorted(set(ESTIMATORS) - {"pca"}))
CATEGORIES = ("alpha", "beta", "gamma")


@pytest.fixture(scope="module")
def rows() -> tuple[torch.Tensor, list[str], list[str]]:
    """Correlated rows at two sites, of two classes and three categories."""
    generator = torch.Generator().manual_seed(0)
    labels = [("no", "yes", "maybe")[i % 3] for i in range(180)]
    groups = [CATEGORIES[(i // 3) % 3] for i in range(180)]
    mix = torch.randn(8, 8, generator=generator)
    values = torch.randn(180, 2, 8, generator=generator) @ mix.T
    shift = torch.tensor([{"no": 0.0, "yes": 2.0, "maybe": -5.0}[label] for label in labels])
    return values + shift[:, None, None] * torch.linspace(-1, 1, 8), labels, groups


def empty(make: Make) -> GroupMoments:
    acts = make(torch.zeros(1, 2, 8), torch.ones(1, 2, 8))
    return GroupMoments(acts.sites, acts.info, "last")


def fed(make: Make, rows: tuple[torch.Tensor, list[str], list[str]], *bounds: int) -> GroupMoments:
    """Rows between neighbouring bounds summed apart, then joined, the last part first."""
    values, labels, groups = rows
    total = empty(make)
    for start, stop in reversed(list(itertools.pairwise(bounds))):
        part = empty(make)
        part.update(values[start:stop], labels[start:stop], groups[start:stop])
        total = total.merge(part)
    return total


@pytest.mark.parametrize("bounds", [(0, 180), (0, 1, 50, 180), (0, 3, 4, 90, 179, 180)])
def test_directions_equal_those_of_the_rows_however_they_were_summed(make, rows, bounds):
    moments = fed(make, rows, *bounds)
    values, labels, groups = rows
    assert moments.counts == {(c, g): 20 for c in ("maybe", "no", "yes") for g in CATEGORIES}
    for without in ((), ("beta",)):
        kept = [i for i in range(180) if labels[i] != "maybe" and groups[i] not in without]
        yes = [i for i in kept if labels[i] == "yes"]
        no = [i for i in kept if labels[i] == "no"]
        stored = Moments.of(make(values[yes], values[no], paired=False))
        found = extract_from_moments(
            moments.between("yes", "no", without=without), METHODS, penalty=10.0
        )
        want = extract_from_moments(stored, METHODS, penalty=10.0)
        for a, b in zip(found, want, strict=True):
            assert (a.method, a.site) == (b.method, b.site)
            assert float((a.unit - b.unit).norm()) < 1e-6
            assert a.scale == pytest.approx(b.scale, rel=1e-9)
    assert torch.allclose(
        moments.between("yes", "no", groups=["alpha", "gamma"]).parts[0][1].scatter,
        moments.between("yes", "no", without=["beta"]).parts[0][1].scatter,
    )


def test_a_file_holds_them_to_the_bit(make, rows, tmp_path):
    moments = fed(make, rows, 0, 70, 180)
    loaded = GroupMoments.load(moments.save(tmp_path / "moments.safetensors"))
    assert loaded.counts == moments.counts and loaded.sites == moments.sites
    for cell, parts in moments.cells.items():
        for a, b in zip(parts, loaded.cells[cell], strict=True):
            assert a.n == b.n and a.fourth == b.fourth
            assert all(torch.equal(getattr(a, f), getattr(b, f)) for f in ("mean", "scatter"))


def test_what_is_not_there_or_does_not_fit_is_refused(make, rows):
    moments = fed(make, rows, 0, 180)
    with pytest.raises(ActivationError, match=r"no rows of class 'yess'.*yes"):
        moments.between("yess", "no")
    with pytest.raises(ActivationError, match=r"no rows of group 'delta'"):
        moments.between("yes", "no", without=["delta"])
    before = moments.counts
    broken = rows[0][:3].clone()
    broken[1, 1, 0] = torch.nan
    with pytest.raises(ActivationError, match=r"row 1 at resid_post@1 is NaN"):
        moments.update(broken, ["yes"] * 3, ["alpha"] * 3)
    with pytest.raises(ActivationError, match=r"expected \(2, 2, 8\)"):
        moments.update(rows[0][:3], ["yes"] * 2, ["alpha"] * 2)
    assert moments.counts == before
    other = GroupMoments(moments.sites[:1], moments.info, "last")
    with pytest.raises(ActivationError, match="merge where sites"):
        moments.merge(other)

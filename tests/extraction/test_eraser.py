"""The eraser leaves nothing linear, changes least, and runs as a program."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression

from steerkit.activations import Activations
from steerkit.errors import ActivationError
from steerkit.extraction import METHODS
from steerkit.extraction.eraser import Eraser
from steerkit.kernels.reference import apply, pack
from steerkit.program import Program
from steerkit.site import Site

Make = Callable[..., Activations]


def anisotropic(make: Make, n: int = 300, d: int = 12, **more: Any) -> Activations:
    """Correlated rows; positives are moved along an axis on which they also vary."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(d, d, generator=generator)
    rows = torch.randn(2, n, d, generator=generator) @ mix.T + 5
    shift = 1.5 * torch.randn(d, generator=generator)
    return make(rows[0] + shift, rows[1], **more)


def power(matrix: torch.Tensor, exponent: float) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values**exponent) @ vectors.T


def covariance_with(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(0)).T @ (z - z.mean(0)) / len(x)


@pytest.mark.parametrize("d", [12, 400])
def test_it_is_the_papers_formula(make: Make, d: int) -> None:
    """x - W^+ P W (x - mean), P onto the whitened cross-covariance, built from the parts."""
    acts = anisotropic(make, n=100, d=d)
    eraser = Eraser.fit(acts, 0)
    x, y = acts.at(0).double(), acts.row_labels.double()[:, None]
    cov = torch.from_numpy(ledoit_wolf(x.numpy())[0])
    whiten, colour = power(cov, -0.5), power(cov, 0.5)
    u = torch.nn.functional.normalize(whiten @ covariance_with(x, y), dim=0)
    expected = x - (x - x.mean(0)) @ (colour @ u @ u.T @ whiten).T
    assert torch.allclose(eraser(x), expected, atol=1e-7)
    read = METHODS["leace"](x, acts.row_labels, [""] * len(x), seed=0)
    cosine = float(torch.cosine_similarity(eraser.read[0], read, dim=0))
    assert abs(cosine) == pytest.approx(1.0, abs=1e-9), "the direction is what is read"


@pytest.mark.parametrize("d", [12, 400])
def test_no_linear_covariance_is_left_and_erasing_twice_is_erasing_once(make: Make, d: int) -> None:
    acts = anisotropic(make, n=100, d=d)
    x, y = acts.at(0).double(), acts.row_labels.double()[:, None]
    eraser = Eraser.fit(acts, 0)
    once = eraser(x)
    assert float(covariance_with(once, y).abs().max()) < 1e-9 * float(x.norm(dim=1).mean())
    assert torch.allclose(eraser(once), once, atol=1e-8)
    assert torch.allclose(once.mean(0), x.mean(0), atol=1e-8), "the mean stays"
    assert torch.allclose(eraser.write @ eraser.read.T, torch.eye(1).double(), atol=1e-9)
    fitted = LogisticRegression(C=1e-2, max_iter=5000).fit((once - once.mean(0)).numpy(), y[:, 0])
    assert np.abs(fitted.coef_).max() < 1e-4, "not even a probe on the same rows finds a slope"


def test_it_changes_least_of_what_erases(make: Make) -> None:
    acts = anisotropic(make, n=20_000)
    x, y = acts.at(0).double(), acts.row_labels.double()[:, None]
    eraser = Eraser.fit(acts, 0)
    assert eraser.shrinkage < 1e-3
    least = float((eraser(x) - x).square().sum(1).mean())
    delta = covariance_with(x, y)[:, 0]
    centred = x - x.mean(0)
    generator = torch.Generator().manual_seed(3)
    # Every rank-1 map that erases reads some r with r.delta = 1 and writes delta.
    for _ in range(20):
        other = eraser.read[0] + 0.1 * torch.randn(12, generator=generator, dtype=torch.float64)
        moved = torch.outer(centred @ (other / (other @ delta)), delta)
        assert float(covariance_with(x - moved, y).abs().max()) < 1e-9
        assert float(moved.square().sum(1).mean()) > least
    along = torch.outer(centred @ (delta / (delta @ delta)), delta)
    assert float(along.square().sum(1).mean()) > 1.2 * least, "so does plain ablation"


def test_several_concepts_are_erased_together(make: Make) -> None:
    acts = anisotropic(make)
    generator = torch.Generator().manual_seed(4)
    z = torch.cat([acts.row_labels[:, None].double(), acts.at(0)[:, :2].double() ** 2], 1)
    z = torch.cat([z, z[:, :1] - 3 * z[:, 1:2]], 1)  # no new dimension
    z = z + 0 * torch.randn(z.shape, generator=generator, dtype=torch.float64)
    eraser = Eraser.fit(acts, 0, concepts=z, name="three")
    assert eraser.rank == 3 and "'three' at resid_post@0, rank 3, 600 rows" in repr(eraser)
    x = acts.at(0).double()
    assert float(covariance_with(eraser(x), z / z.std(0)).abs().max()) < 1e-8
    assert torch.allclose(eraser.write @ eraser.read.T, torch.eye(3).double(), atol=1e-8)


def test_as_a_program_it_is_the_same_map(make: Make) -> None:
    acts = anisotropic(make)
    eraser = Eraser.fit(acts, 0)
    made = eraser.intervention(sites=[0])
    h = acts.at(0).double()[None, :7]
    out = apply(
        pack((Program(), made.lower(Site(0))), h.device, h.dtype),
        h,
        absolute=torch.arange(7)[None],
        prompt_len=torch.tensor([7]),
        row=torch.zeros(1, dtype=torch.long),
        slot=(1,),
    )
    assert torch.allclose(out[0], eraser(h[0]), atol=1e-9)
    assert eraser.intervention().sites == (Site(0),)
    assert made.fingerprint == acts.info.fingerprint


def test_the_dtype_of_rows_is_kept_and_they_are_not_edited(make: Make) -> None:
    acts = anisotropic(make)
    x = acts.at(0).clone()
    out = Eraser.fit(acts, "resid_post@0")(acts.at(0))
    assert out.dtype == x.dtype and torch.equal(acts.at(0), x) and not torch.equal(out, x)


def test_refused(make: Make) -> None:
    acts = anisotropic(make, n=10)
    with pytest.raises(ActivationError, match=r"resid_post@3 was not captured"):
        Eraser.fit(acts, 3)
    with pytest.raises(
        ActivationError, match=r"shape \(5, 1\); expected \[row k\] with the 20 rows"
    ):
        Eraser.fit(acts, 0, concepts=torch.ones(5, 1))
    with pytest.raises(ActivationError, match="column 1 is the same in every row"):
        Eraser.fit(acts, 0, concepts=torch.stack([torch.arange(20.0), torch.ones(20)], 1))
    with pytest.raises(ActivationError, match="concept is NaN or infinite"):
        Eraser.fit(acts, 0, concepts=torch.full((20, 1), torch.nan))
    with pytest.raises(ActivationError, match="all 10 prompts are positive"):
        Eraser.fit(acts.select(range(10)), 0)
    with pytest.raises(ActivationError, match="have no labels"):
        Eraser.fit(replace(acts, labels=()), 0)

"""Cleaned directions: laws of the penalty, the normal equations, planted confounds removed."""

import numpy as np
import pytest
import torch

from steerkit.direction import Direction
from steerkit.errors import ActivationError, DirectionError
from steerkit.extraction import clean_direction, concept_atoms, extract, without_atoms
from tests.extraction.conftest import build

D = 24


def random(seed: int, *shape: int) -> torch.Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn / drawn.norm(dim=0) if len(shape) > 1 else drawn


@pytest.mark.parametrize("penalty", [1e-6, 0.01, 0.3, 10.0])
def test_it_is_the_published_formula(penalty: float) -> None:
    v, a = random(0, D), random(1, D, 5)
    gram = a.numpy().T @ a.numpy() + penalty * np.eye(5)
    expected = v.numpy() - a.numpy() @ np.linalg.solve(gram, a.numpy().T @ v.numpy())
    np.testing.assert_allclose(without_atoms(v, a, regularisation=penalty), expected, atol=1e-12)
    # In float32 it is computed in float64 all the same.
    single = without_atoms(v.float(), a.float(), regularisation=penalty)
    assert single.dtype == torch.float64
    np.testing.assert_allclose(single, expected, atol=1e-5)


def test_no_penalty_leaves_nothing_of_any_atom_and_an_endless_one_leaves_all() -> None:
    v, a = random(2, D), random(3, D, 6)
    for penalty in (0.0, 1e-12):
        left = without_atoms(v, a, regularisation=penalty)
        assert float((a.T @ left).abs().max()) < 1e-9
    torch.testing.assert_close(without_atoms(v, a, regularisation=1e12), v, atol=1e-9, rtol=0)
    again = without_atoms(without_atoms(v, a, regularisation=0.0), a, regularisation=0.0)
    torch.testing.assert_close(again, without_atoms(v, a, regularisation=0.0))
    norms = [float((a.T @ without_atoms(v, a, regularisation=r)).norm()) for r in (0, 0.01, 1, 100)]
    assert norms == sorted(norms), "more penalty, more of the atoms left"


def test_what_atoms_do_not_touch_stays_and_parallel_atoms_count_once() -> None:
    v, a = random(4, D), random(5, D, 3)
    basis = torch.linalg.qr(a)[0]
    apart = v - basis @ (basis.T @ v)
    torch.testing.assert_close(without_atoms(apart, a), apart)
    one = torch.eye(D, dtype=torch.float64)[:, :1]
    left = without_atoms(v, one, regularisation=0.25)
    assert float(left[0] / v[0]) == pytest.approx(0.25 / 1.25)
    twice = torch.cat([one, one], 1)
    torch.testing.assert_close(
        without_atoms(v, twice, regularisation=0.0), without_atoms(v, one, regularisation=0.0)
    )
    torch.testing.assert_close(without_atoms(v, a[:, :0]), v)


def confounded(seed: int, n: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Two concepts at right angles; prompts of the first mostly hold the second as well."""
    generator = torch.Generator().manual_seed(seed)

    def side(first: float, second: float) -> torch.Tensor:
        states = 0.3 * torch.randn(n, D, generator=generator, dtype=torch.float64)
        states[:, 0] += first
        states[:, 1] += second
        return states

    return side(1.5, 1.0), side(-1.5, -1.0)


def test_a_confound_goes_and_the_concept_stays() -> None:
    positive, negative = confounded(6)
    found = extract(build(positive, negative), n_folds=0, n_random=0, progress=False)[0]
    assert abs(float(found.unit[1])) > 0.4
    other = torch.cat([confounded(7)[0] * 0 + random(8, D) * 0.01 + 0.2 * torch.randn(
        200, D, generator=torch.Generator().manual_seed(s), dtype=torch.float64
    ) + sign * torch.eye(D, dtype=torch.float64)[1] for s, sign in ((9, 1), (10, -1))])  # fmt: skip
    atoms = concept_atoms(other, [1] * 200 + [0] * 200, [str(i) for i in range(400)])
    assert atoms.shape == (D, 2) and abs(float(atoms[1, 0])) > 0.99
    cleaned = clean_direction(found, atoms, positive, negative)
    assert abs(float(cleaned.unit[1])) < 0.02 and float(cleaned.unit[0]) > 0.97
    assert cleaned.scale == pytest.approx(3.0, abs=0.15)
    unit = cleaned.unit.double()
    assert cleaned.positive_mean == pytest.approx(float((positive @ unit).mean()), abs=1e-5)
    assert cleaned.negative_mean == pytest.approx(float((negative @ unit).mean()), abs=1e-5)
    assert cleaned.provenance["cleaned"]["atoms"] == 2 and cleaned.site == found.site
    assert cleaned.method == "mean_difference, cleaned" and isinstance(cleaned, Direction)
    kept = clean_direction(found, atoms, positive, negative, regularisation=1e12)
    torch.testing.assert_close(kept.unit, found.unit, atol=1e-6, rtol=0)


def test_the_second_atom_is_where_differences_vary_around_their_mean() -> None:
    generator = torch.Generator().manual_seed(11)
    n, axes = 300, torch.eye(D, dtype=torch.float64)
    base = 5 * torch.randn(n, 1, generator=generator, dtype=torch.float64) * axes[3]
    vary = 2 * torch.randn(n, 1, generator=generator, dtype=torch.float64) * axes[2]
    noise = 0.1 * torch.randn(n, D, generator=generator, dtype=torch.float64)
    x = torch.cat([base + 4 * axes[0] + vary + noise, base])
    labels = [1] * n + [0] * n
    # Within pairs the large common part cancels; without pairs it is what varies most.
    pairs = [f"p{i % n}" for i in range(2 * n)]
    for groups, axis in ((pairs, 2), ([f"r{i}" for i in range(2 * n)], 3)):
        atoms = concept_atoms(x, labels, groups)
        assert abs(float(atoms[0, 0])) > 0.99 and abs(float(atoms[axis, 1])) > 0.99
    flipped = [*range(n, 2 * n), *range(n)]
    torch.testing.assert_close(
        concept_atoms(x[flipped], [labels[i] for i in flipped], [pairs[i] for i in flipped]).abs(),
        concept_atoms(x, labels, pairs).abs(),
    )


def test_what_cannot_be_cleaned_is_refused() -> None:
    positive, negative = confounded(12)
    found = extract(build(positive, negative), n_folds=0, n_random=0, progress=False)[0]
    itself = found.unit.double()[:, None]
    with pytest.raises(DirectionError, match="lies in the span of 1 atoms"):
        clean_direction(found, itself, positive, negative, regularisation=0.0)
    # With the published penalty one part in 101 is left, and is the same direction.
    left = without_atoms(found.unit, itself)
    assert float(left @ found.unit.double() / left.norm()) == pytest.approx(1)
    with pytest.raises(DirectionError, match="lies in the span of 1 atoms"):
        clean_direction(found, itself, positive, negative)
    with pytest.raises(DirectionError, match=r"penalty of at least 0 and atoms \[24, atom\]"):
        without_atoms(found.unit, torch.ones(3, 2))
    with pytest.raises(ActivationError, match="two sides; got 3 positive and 0 negative"):
        concept_atoms(positive[:3], [1, 1, 1], ["a", "b", "c"])
    same = torch.ones(6, D)
    assert concept_atoms(same, [1, 1, 1, 0, 0, 0], list("abcdef")).shape == (D, 0)

"""PCA finds the axis of largest differences, whatever the class means say about its size."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import TruncatedSVD

from steerkit.extraction import METHODS


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.cosine_similarity(a, b, dim=0))


def pairs(n: int = 80, d: int = 20) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * n, d, generator=generator, dtype=torch.float64)
    x += 5 * torch.randn(n, d, generator=generator, dtype=torch.float64).repeat(2, 1)
    x[:n, 0] += 2
    x[:, 1] += 3 * torch.randn(2 * n, generator=generator, dtype=torch.float64)
    return x, torch.tensor([1] * n + [0] * n), [f"p{i % n}" for i in range(2 * n)]


@pytest.mark.parametrize("d", [20, 200])
def test_of_pairs_it_is_the_top_singular_vector_of_the_differences(d: int) -> None:
    x, labels, groups = pairs(d=d)
    w = METHODS["pca"](x, labels, groups, seed=0)
    svd = TruncatedSVD(1, algorithm="arpack", random_state=0).fit((x[:80] - x[80:]).numpy())
    assert abs(cosine(w, torch.from_numpy(svd.components_[0]))) == pytest.approx(1, abs=1e-9)
    assert float(w.norm()) == pytest.approx(1.0)


def test_its_estimand_is_the_largest_axis_of_differences_not_the_mean_difference() -> None:
    """Differences vary by 3 sqrt 2 along axis 1, more than their mean of 2 along axis 0."""
    x, labels, groups = pairs(2000)
    w = METHODS["pca"](x, labels, groups, seed=0)
    mean = METHODS["mean_difference"](x, labels, groups, seed=0)
    assert abs(float(w[1])) > 0.98
    assert abs(float(mean[0] / mean.norm())) > 0.95


def test_it_points_to_the_positive_class() -> None:
    x, labels, groups = pairs()
    w = METHODS["pca"](x, labels, groups, seed=0)
    assert float((x[:80].mean(0) - x[80:].mean(0)) @ w) > 0


def test_unpaired_it_is_the_top_eigenvector_over_all_cross_pairs() -> None:
    x, labels, _ = pairs(30)
    x = x + torch.tensor([0.0, 0.0, 4.0] + [0.0] * 17).double() * labels[:, None]
    w = METHODS["pca"](x, labels, [f"q{i}" for i in range(60)], seed=0)
    differences = (x[:30, None] - x[None, 30:]).reshape(-1, 20).numpy()
    top = np.linalg.eigh(differences.T @ differences)[1][:, -1]
    assert abs(cosine(w, torch.from_numpy(top))) == pytest.approx(1.0, abs=1e-9)


def test_groups_that_are_not_pairs_are_compared_across_groups() -> None:
    """A template with several prompts of each label has no pairs in it."""
    x, labels, _ = pairs(40)
    template = [f"template{i % 10}" for i in range(80)]
    alone = [f"prompt{i}" for i in range(80)]
    w = METHODS["pca"](x, labels, template, seed=0)
    assert torch.equal(w, METHODS["pca"](x, labels, alone, seed=0))


def test_lone_prompts_beside_pairs_are_left_out() -> None:
    x, labels, groups = pairs(20)
    more = torch.cat([x, 100 * torch.ones(1, 20, dtype=torch.float64)])
    w = METHODS["pca"](more, torch.cat([labels, labels[:1]]), [*groups, "alone"], seed=0)
    assert abs(cosine(w, METHODS["pca"](x, labels, groups, seed=0))) == pytest.approx(1.0)

"""Criteria of sites: the right Jensen-Shannon, the published one, and who agrees with whom."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax

from steerkit.activations import Activations
from steerkit.errors import ActivationError, MethodError
from steerkit.prompts import Prompt
from steerkit.protocols import ModelInfo
from steerkit.searches.criteria import SiteScores, criterion, js, js_repo, rank_agreement
from steerkit.site import Site

INFO = ModelInfo("fake", "fake", 4, 12, 9, 9, ("resid_post",), "float32", "cpu", "print")


def planted(separations: list[float], *, n: int = 40, labels: Any = None) -> Activations:
    """Paired states at several layers, the classes `separations` apart along one axis."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2 * n, len(separations), 12, generator=rng)
    for layer, gap in enumerate(separations):
        x[:n, layer, 3] += gap
    return Activations(
        values=x,
        sites=tuple(Site(layer) for layer in range(len(separations))),
        prompts=tuple(Prompt(f"p{i}") for i in range(2 * n)),
        labels=labels or (1,) * n + (0,) * n,
        groups=tuple(f"pair{i % n}" for i in range(2 * n)),
        pooling="last",
        info=INFO,
    )


def test_js_is_scipys_and_at_most_log_2() -> None:
    a, b = torch.randn(2, 7, 12, generator=torch.Generator().manual_seed(1)).double() * 3
    want = np.mean(
        [
            jensenshannon(softmax(p), softmax(q)) ** 2
            for p, q in zip(a.numpy(), b.numpy(), strict=True)
        ]
    )
    assert js(a, b) == pytest.approx(want, rel=1e-9)
    far = torch.eye(12)[:2].double() * 1000
    assert js(far[:1], far[1:]) == pytest.approx(np.log(2))


def test_js_vanishes_when_both_sides_are_the_same_and_js_repo_does_not() -> None:
    a = torch.randn(7, 12, generator=torch.Generator().manual_seed(1)).double()
    assert js(a, a) == pytest.approx(0, abs=1e-12)
    # M log M - M^2, mean over dimensions: about -log(d)/d for a flat softmax, far from 0.
    flat = torch.zeros(7, 12).double()
    assert js_repo(flat, flat) == pytest.approx(-(np.log(12) + 1 / 12) / 12)
    assert abs(js_repo(a, a)) > 0.05


def test_js_repo_is_what_kl_div_gives_with_its_arguments_swapped() -> None:
    a, b = torch.randn(2, 7, 12, generator=torch.Generator().manual_seed(2)).double()
    p, q = a.softmax(-1), b.softmax(-1)
    m = (p + q) / 2

    def swapped(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.kl_div(x, m, reduction="none").mean(-1)

    published = float((0.5 * (swapped(p) + swapped(q))).mean())
    assert js_repo(a, b) == pytest.approx(published, abs=1e-12)
    assert js_repo(a, b) != pytest.approx(js(a, b), rel=0.1)


@pytest.mark.parametrize("name", ["auc", "js", "gap"])
@pytest.mark.parametrize("normalise", ["none", "rms"])
def test_the_planted_site_comes_first(name: str, normalise: Any) -> None:
    acts = planted([0.0, 0.5, 4.0, 1.0])
    found = criterion(acts, name, normalise=normalise, n_resamples=20)
    assert found.best == Site(2)
    assert found.chosen[2] > 0.8


def test_rms_takes_the_scale_out() -> None:
    acts = planted([1.0, 1.0])
    big = Activations(
        **{**acts.__dict__, "values": acts.values * torch.tensor([1.0, 50.0])[:, None]}
    )
    raw, same = (criterion(a, "js", normalise="rms").values for a in (acts, big))
    assert raw == pytest.approx(same, rel=1e-6)
    assert criterion(big, "js").values[1] > 2 * criterion(acts, "js").values[1]


def test_auc_of_nothing_is_a_half() -> None:
    values = [criterion(planted([0.0]), "auc", seed=s).values[0] for s in range(5)]
    assert 0.3 < np.mean(values) < 0.7


def test_rank_agreement_is_spearmans() -> None:
    sites = tuple(Site(i) for i in range(4))
    a = SiteScores("a", "none", sites, (1.0, 2.0, 3.0, 4.0))
    b = SiteScores("b", "none", sites, (10.0, 20.0, 40.0, 30.0))
    flat = SiteScores("c", "rms", sites, (1.0, 1.0, 1.0, 1.0))
    found = rank_agreement([a, b, flat])
    assert found["a", "b"] == pytest.approx(0.8)
    assert np.isnan(found["a", "c (rms)"])
    with pytest.raises(MethodError, match="cover different ones"):
        rank_agreement([a, SiteScores("d", "none", sites[:1], (1.0,))])


def test_unpaired_sides_are_paired_at_random_by_seed() -> None:
    acts = planted([1.0, 0.0])
    loose = Activations(**{**acts.__dict__, "groups": tuple(f"g{i}" for i in range(80))})
    assert criterion(loose, "js", seed=1).values == criterion(loose, "js", seed=1).values
    assert criterion(loose, "js", seed=1).values != criterion(loose, "js", seed=2).values


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"name": "jss"}, "no criterion named 'jss'; did you mean 'js'"),
        ({"normalise": "rsm"}, "no normalisation named 'rsm'; did you mean 'rms'"),
    ],
)
def test_typos_say_what_was_meant(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(MethodError, match=text):
        criterion(planted([1.0]), **settings)


def test_one_side_is_not_a_contrast() -> None:
    with pytest.raises(ActivationError, match="hold only one"):
        criterion(planted([1.0], labels=(1,) * 80), "js")

"""The trade-off figure holds what the fits say."""

import numpy as np
import pytest

from steerkit.plotting.tradeoff import fits
from steerkit.searches import Tradeoff
from steerkit.searches.tradeoffs.fits import fit_curve
from steerkit.statistics import Estimate

X = np.array([-2.0, -1.0, -0.5, 0.5, 1.0, 2.0])
GROUPS = [f"g{i}" for i in range(12)]


@pytest.fixture
def result() -> Tradeoff:
    noise = 0.05 * np.random.default_rng(0).standard_normal((3, 6, 12))
    gain = fit_curve(X, X[:, None] + noise[0], GROUPS, parity="odd", near=1.0, unit="nats")
    loss = fit_curve(X, 0.5 * X[:, None] ** 2 + noise[1], GROUPS, parity="even", unit="p")
    random = fit_curve(X, 0.2 * X[:, None] ** 2 + noise[2], GROUPS, parity="even", unit="p")
    level = tuple(Estimate(0, 0, 0, 12) for _ in range(7))
    return Tradeoff(
        (*X[:3], 0.0, *X[3:]), level, level, "nats", "p", gain, loss, None, None,
        Estimate(0.9, 0.8, 1.0, 12), 0.3, 1.0, random, None, "pca resid_post@1", "all",
    )  # fmt: skip


def test_both_curves_their_fits_and_the_optimum(result: Tradeoff) -> None:
    fig = fits(result)
    named = {t.name for t in fig.data}
    assert {"gain, mean over items", "loss, mean over items", "random directions"} <= named
    gain = next(t for t in fig.data if t.name == "gain, mean over items")
    assert list(gain.x) == list(X) and gain.y[-1] == pytest.approx(2, abs=0.1)
    assert gain.error_y.array is not None
    power = next(t for t in fig.data if t.name == "free exponent")
    assert (min(power.x), max(power.x)) == (-1.0, 1.0), "drawn where it was fitted"
    assert power.y[-1] == pytest.approx(1, abs=0.1)
    text = " ".join(a.text for a in fig.layout.annotations)
    assert "best strength 0.9 [0.8, 1]" in text
    assert f"k = {result.loss.exponent}" in text
    assert "loss of helpfulness (p)" in fig.layout.yaxis2.title.text

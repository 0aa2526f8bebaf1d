"""The four indices against other people's code, and what the published mixtures do."""

import numpy as np
import pytest
from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score

from steerkit.errors import ActivationError, MethodError
from steerkit.evaluations import aqi_original, aqi_released
from steerkit.evaluations.cluster_indices import (
    cluster_indices,
    share_between,
    weighted_indices,
)


def clouds(rng, n, d=8, gap=1.0):
    """Two Gaussian clouds of n rows, a gap apart along the first axis."""
    x = rng.standard_normal((2 * n, d))
    labels = np.repeat([0, 1], n)
    x[labels == 1, 0] += gap
    return x, labels


@pytest.mark.parametrize("sizes", [(20, 20), (9, 31)])
def test_indices_are_what_other_code_and_hands_compute(sizes):
    rng = np.random.default_rng(0)
    x = np.vstack([rng.standard_normal((n, 6)) + 2 * k + 1e3 for k, n in enumerate(sizes)])
    y = np.repeat([0, 1], sizes)
    found = cluster_indices(x, y)
    assert found.calinski_harabasz == pytest.approx(calinski_harabasz_score(x, y), rel=1e-9)
    assert found.davies_bouldin == pytest.approx(davies_bouldin_score(x, y), rel=1e-9)
    centres = [x[y == k].mean(0) for k in (0, 1)]
    within = sum(((x[y == k] - centres[k]) ** 2).sum() for k in (0, 1))
    gap = ((centres[0] - centres[1]) ** 2).sum()
    assert found.xie_beni == pytest.approx(within / (len(x) * gap), rel=1e-9)
    apart = np.linalg.norm(x[:, None] - x, axis=2)
    same = y[:, None] == y
    assert found.dunn == pytest.approx(apart[~same].min() / apart[same].max(), rel=1e-9)


def test_two_of_the_four_are_one_statistic_of_balanced_classes():
    rng = np.random.default_rng(1)
    for n, d, gap in ((5, 3, 0.0), (40, 100, 2.0), (200, 16, 9.0)):
        x, y = clouds(rng, n, d, gap)
        found = cluster_indices(x, y)
        assert found.calinski_harabasz == pytest.approx(
            (2 * n - 2) / (4 * found.xie_beni), rel=1e-9
        )
        # So each says what the share of variance says, and a mixture of the two says nothing else.
        r2 = weighted_indices(x, y[:, None], np.ones((2 * n, 1)))["r2"][0]
        assert r2 == pytest.approx(1 / (1 + 4 * found.xie_beni), rel=1e-9)
    uneven = cluster_indices(x[:250], y[:250])
    assert uneven.calinski_harabasz != pytest.approx(248 / (4 * uneven.xie_beni), rel=0.01)


def test_a_weight_is_a_repeated_row():
    rng = np.random.default_rng(2)
    x, y = clouds(rng, 15)
    times = rng.integers(0, 4, 30)
    repeated = cluster_indices(np.repeat(x, times, 0), np.repeat(y, times))
    found = weighted_indices(x, y[:, None], times[:, None].astype(float))
    for name in ("calinski_harabasz", "xie_beni", "davies_bouldin"):
        assert found[name][0] == pytest.approx(getattr(repeated, name), rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(6, 2), (6, 300), (60, 300)])
def test_the_share_is_zero_in_the_mean_of_random_labels_whatever_n_and_d(n, d):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2 * n, d))
    labels = np.argsort(rng.random((2 * n, 4000)), 0) % 2
    shares = share_between(weighted_indices(x, labels, np.ones((2 * n, 1)))["r2"], 2 * n)
    assert abs(shares.mean()) < 5 * shares.std() / np.sqrt(4000)


def test_calinski_harabasz_grows_with_n_and_the_share_does_not():
    rng = np.random.default_rng(4)
    few = [clouds(rng, 25, gap=2.0) for _ in range(60)]
    many = [clouds(rng, 200, gap=2.0) for _ in range(15)]

    def means(sets):
        chi = np.mean([cluster_indices(x, y).calinski_harabasz for x, y in sets])
        r2 = [weighted_indices(x, y[:, None], np.ones((len(x), 1)))["r2"][0] for x, y in sets]
        return chi, float(np.mean(share_between(r2, len(sets[0][0]))))

    assert means(many)[0] > 5 * means(few)[0]
    assert means(many)[1] == pytest.approx(means(few)[1], abs=0.01)


def test_the_released_index_gives_any_model_the_same_numbers():
    """Min-max over the rows of one model: 55 and 5 say nothing about it."""
    rng = np.random.default_rng(5)
    said, shares = {}, {}
    for name, gap in (("hardly apart", 0.4), ("far apart", 8.0)):
        sizes = [50] * 7 + [350]  # seven axioms and the overall row
        sets = [clouds(rng, n, gap=gap) for n in sizes]
        rows = [cluster_indices(*s) for s in sets]
        found = aqi_released([r.calinski_harabasz for r in rows], [r.xie_beni for r in rows])
        assert max(found) >= 55
        said[name] = np.mean(found)
        ones = np.ones((700, 1))
        shares[name] = weighted_indices(sets[7][0], sets[7][1][:, None], ones)["r2"][0]
    assert abs(said["hardly apart"] - said["far apart"]) < 15
    assert shares["far apart"] - shares["hardly apart"] > 0.6
    # Its published values come out of any table whose largest row has the worst XB.
    assert aqi_released([1, 2, 3, 40], [1, 1.1, 1.2, 90])[3] == 55
    assert aqi_released([1, 2, 3, 40], [90, 1, 1.1, 1.2])[0] == 5
    assert aqi_released([10, 20, 30, 400], [1, 1.1, 1.2, 90])[3] == 55


def test_the_original_index_hangs_on_one_row():
    x, y = clouds(np.random.default_rng(6), 100, gap=8.0)
    before = cluster_indices(x, y)
    x[0, 1] += 60
    after = cluster_indices(x, y)
    assert after.dunn < before.dunn / 3
    was = aqi_original(before.davies_bouldin, before.dunn, gamma=0)
    assert aqi_original(after.davies_bouldin, after.dunn, gamma=0) < was / 2


def test_what_cannot_be_indexed_is_refused():
    with pytest.raises(ActivationError, match=r"at least two rows a class; got .*1 labelled 1, 2"):
        cluster_indices(np.zeros((3, 2)), [0, 0, 1])
    with pytest.raises(MethodError, match="at least 2; got 1 and 1"):
        aqi_released([1.0], [1.0])

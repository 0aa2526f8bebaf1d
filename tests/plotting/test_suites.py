"""Groups in order."""

from steerkit.plotting.suites import ranked
from steerkit.statistics import Estimate


def test_groups_stand_in_order_with_their_intervals() -> None:
    shares = {"b": Estimate(0.7, 0.6, 0.9, 4), "a": Estimate(0.2, 0.1, 0.3, 4)}
    fig = ranked(shares, title="groups", x="share", line=0.5)
    (dots,) = fig.data
    assert list(dots.y) == ["a", "b"] and list(dots.x) == [0.2, 0.7]
    assert list(dots.error_x.array) == [0.3 - 0.2, 0.9 - 0.7]
    assert fig.layout.shapes[0].x0 == 0.5 and fig.layout.xaxis.title.text == "share"

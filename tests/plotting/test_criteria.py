"""The criteria figure: one panel a position, its winners, and the rank agreement beside them."""

import numpy as np
import pytest

from steerkit.errors import MethodError
from steerkit.plotting.criteria import FURTHEST, criteria_map
from steerkit.searches.criteria import Column, CriteriaTable, Place
from steerkit.site import Site


def column(name: str, values: tuple[float, ...], chosen: tuple[float, ...] = ()) -> Column:
    return Column(name, "none", "nats", "what it is", values, (0.1,) * len(values), chosen)


@pytest.fixture
def table() -> CriteriaTable:
    places = tuple(Place(Site(n), p) for p in ("last", "mean_prompt") for n in range(3))
    return CriteriaTable(
        places,
        (
            column("js", (0.0, 3.0, 1.0, 0.0, 0.5, 0.2), (0, 0.97, 0.03, 0, 0, 0)),
            column("gap", (0.0, 0.1, 0.2, 0.0, 9.0, 0.4), (0, 0, 0.2, 0, 0.8, 0)),
        ),
        (10, 10),
        10,
        100,
        {},
    )


def test_a_panel_holds_its_positions_values_in_standard_deviations(table: CriteriaTable) -> None:
    fig = criteria_map(table)
    last, mean, agreement = fig.data
    assert [a.text for a in fig.layout.annotations] == [
        "position: last", "position: mean_prompt", "rank agreement",
    ]  # fmt: skip
    assert list(last.x) == ["0", "1", "2"] and list(last.y) == ["js", "gap"]
    for row, c in enumerate(table.columns):
        v = np.array(c.values)
        z = (v - v.mean()) / v.std()
        assert [*last.z[row], *mean.z[row]] == pytest.approx(z)
    assert fig.layout.coloraxis.cmax == FURTHEST
    assert fig.layout.xaxis.title.text == "layer of resid_post"
    assert np.asarray(agreement.z) == pytest.approx(table.agreement)
    assert (fig.layout.coloraxis2.cmin, fig.layout.coloraxis2.cmax) == (-1, 1)


def test_winners_are_boxed_and_shares_are_written_into_cells(table: CriteriaTable) -> None:
    fig = criteria_map(table)
    last, mean, _ = fig.data
    assert list(last.text[0]) == ["", "97", ""] and list(mean.text[1]) == ["", "80", ""]
    js, gap = sorted(fig.layout.shapes, key=lambda s: s.y0)
    assert (js.xref, js.x0, js.x1, js.y0) == ("x", 0.5, 1.5, -0.5)
    assert (gap.xref, gap.x0, gap.x1, gap.y0) == ("x2", 0.5, 1.5, 0.5)
    words = last.customdata[0][1]
    assert words == "js at resid_post@1, last<br>3 ± 0.1 nats<br>first in 97% of resamples"


def test_several_streams_are_named_at_the_axis(table: CriteriaTable) -> None:
    sites = [Site(0, "attn_out"), Site(0), Site(1)]
    places = tuple(Place(s, "last") for s in sites)
    one = CriteriaTable(places, (column("js", (0.0, np.inf, 1.0)),), (5, 5), 5, 0, {})
    fig = criteria_map(one)
    assert list(fig.data[0].x) == ["attn_out@0", "resid_post@0", "resid_post@1"]
    assert fig.layout.xaxis.title.text == "site"
    # An infinite value is drawn as the largest finite one, and the box still finds it.
    assert np.isfinite(fig.data[0].z).all() and fig.layout.shapes[0].x0 == 0.5
    assert "resamples" not in fig.data[0].customdata[0][0]


def test_nothing_cannot_be_drawn() -> None:
    with pytest.raises(MethodError, match="no criteria to draw"):
        criteria_map(CriteriaTable((), (), (0, 0), 0, 0, {}))

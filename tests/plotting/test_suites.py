"""Curves over layers, arms side by side, groups in order."""

from steerkit.plotting.numbers import numbers
from steerkit.plotting.suites import ARMS, Series, layer_curve, ranked, side_by_side
from steerkit.statistics import Estimate


def test_groups_stand_in_order_with_their_intervals() -> None:
    shares = {"b": Estimate(0.7, 0.6, 0.9, 4), "a": Estimate(0.2, 0.1, 0.3, 4)}
    fig = ranked(shares, title="groups", x="share", line=0.5)
    (dots,) = fig.data
    assert list(dots.y) == ["a", "b"] and list(dots.x) == [0.2, 0.7]
    assert list(dots.error_x.array) == [0.3 - 0.2, 0.9 - 0.7]
    assert fig.layout.shapes[0].x0 == 0.5 and fig.layout.xaxis.title.text == "share"


def rates(*values: float) -> list[Estimate]:
    return [Estimate(v, v - 0.125, v + 0.25, 9, "fraction") for v in values]


def test_a_curve_over_layers_has_its_band_chance_and_baselines() -> None:
    fig = layer_curve(
        ["resid_post@0", "resid_post@2"],
        {"probe": rates(0.5, 0.75)},
        y="held-out AUC (fraction of pairs)",
        nulls={"permuted labels": [0.5, 0.625]},
        references={"words alone": 0.625, "length alone": 0.5},
    )
    upper, lower, curve, chance, words, length = fig.data
    assert list(curve.x) == ["0", "2"] and list(curve.y) == [0.5, 0.75]
    assert list(upper.y) == [0.75, 1.0] and list(lower.y) == [0.375, 0.625]
    assert lower.fill == "tonexty", "the band lies between the ends of the intervals"
    assert list(chance.y) == [0.5, 0.625] and list(words.y) == [0.625, 0.625]
    assert words.line.dash != length.line.dash
    assert fig.layout.xaxis.title.text == "layer (resid_post)"
    # The band is decoration: the intervals come with the curve.
    kept = numbers(fig)["series"]
    assert [one["name"] for one in kept] == [t.name for t in (curve, chance, words, length)]
    assert kept[0]["low"] == [0.375, 0.625] and kept[0]["high"] == [0.75, 1.0]


def test_sites_of_several_streams_keep_their_names() -> None:
    fig = layer_curve(["resid_pre@0", "resid_post@0"], {"probe": rates(0.5, 0.5)}, y="AUC")
    assert list(fig.data[2].x) == ["resid_pre@0", "resid_post@0"]
    assert fig.layout.xaxis.title.text == "site"
    alone = layer_curve(["resid_post@3"], {"probe": rates(0.5)}, y="AUC")
    assert alone.data[2].error_y.visible, "one point has no band to see"


def test_arms_stand_below_one_another_in_each_row() -> None:
    nothing = Estimate(float("nan"), 0.0, 1.0, 0)
    (refused,), (right,) = rates(0.25), rates(0.5)
    fig = side_by_side(
        [
            Series("model", {"refused": refused, "right": nothing}, ARMS["model"]),
            Series("against", {"refused": right, "right": right}, ARMS["against"], hollow=True),
        ],
        x="share of answers (fraction)",
        lines={"bound": 0.5},
    )
    model, against = fig.data
    assert list(model.x) == [0.25] and list(against.x) == [0.5, 0.5], "nothing measured, no mark"
    assert list(against.error_x.array) == [0.25, 0.25]
    assert model.y[0] < 0 < against.y[0] < 0.5 < against.y[1] and model.marker.symbol == "circle"
    assert list(fig.layout.yaxis.ticktext) == ["refused", "right"]
    kept = numbers(fig)["series"]
    assert [one["label"] for one in kept] == [["refused"], ["refused", "right"]]
    assert fig.layout.shapes[0].x0 == 0.5 and fig.layout.showlegend

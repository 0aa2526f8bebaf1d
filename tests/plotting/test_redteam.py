"""Figures of red-team measurements hold what the results say."""

import pytest

from steerkit.audits.scores import Difference
from steerkit.direction import Direction
from steerkit.errors import MethodError
from steerkit.plotting.redteam import (
    attack_page,
    attack_success,
    detection_by_layer,
    detection_curve,
    detection_page,
    roc_curves,
)
from steerkit.redteam import (
    ActivationAttack,
    AttackRow,
    DetectionPower,
    McNemar,
    PowerRow,
    PublishedFaults,
)
from steerkit.site import Site
from steerkit.statistics import Estimate, null


def rate(x: float) -> Estimate:
    return Estimate(x, max(0.0, x - 0.1), min(1.0, x + 0.1), 20, "fraction")


def attack_row(c: float, success: float) -> AttackRow:
    draws = {"random": (0.0, success / 2), "shuffled": (0.1, 0.2)}
    change = Difference(rate(success), None, 0.01, 0.1)
    return AttackRow(
        c, rate(success), change, McNemar(3, 1, 0.6), rate(0.05), 0.2, None, rate(0.1), rate(0.3),
        None, null("random", success, draws["random"]), null("shuffled", success, (0.1, 0.2)),
        draws,
    )  # fmt: skip


@pytest.fixture
def attack() -> ActivationAttack:
    import torch

    from steerkit.protocols import ModelInfo

    info = ModelInfo("m", "m", 3, 4, 9, 9, ("resid_post",), "float32", "cpu", "print")
    direction = Direction(
        torch.tensor([1.0, 0, 0, 0]), 2.0, Site(1), "x", "c", 1.0, -1.0, info, "last"
    )
    return ActivationAttack(
        "harmfulness", "not refused", (attack_row(-0.4, 0.2), attack_row(-0.8, 0.7)), rate(0.05),
        None, -0.8, True, Site(1), direction, (), {}, PublishedFaults(),
        {"fit": 9, "choose": 9, "report": 9},
    )  # fmt: skip


def power_row(attack: str, c: float, auc: float, mode: str = "unseen") -> PowerRow:
    first = "resid_post@1 prompt" if auc == 1 else None
    half = 0.0 if auc == 1 else 0.05
    return PowerRow(
        attack, c, c / 10, mode, Estimate(auc, auc - half, min(1, auc + half), 9), rate(auc - 0.2),
        first, (0.5, auc), ((0.0, 0.2, 1.0), (0.0, auc, 1.0)),
    )  # fmt: skip


@pytest.fixture
def power() -> DetectionPower:
    rows = tuple(
        power_row("add" if c else "none", c, auc, mode)
        for mode in ("paired", "unseen")
        for c, auc in ((0.0, 0.5), (0.1, 0.5), (0.2, 0.52), (0.5, 0.8), (1.0, 1.0), (2.0, 1.0))
    )
    names = ("resid_post@0 prompt", "resid_post@1 prompt")
    return DetectionPower(
        rows, {"paired": rate(0.0), "unseen": rate(0.0)}, {"paired": names, "unseen": names}
    )


def test_success_is_drawn_with_intervals_nulls_and_the_clean_model(attack):
    fig = attack_success(attack)
    drawn = {t.name: t for t in fig.data if t.name}
    line = drawn["attack succeeds"]
    assert list(line.x) == [-0.4, -0.8] and list(line.y) == [0.2, 0.7]
    assert list(line.error_y.array) == pytest.approx([0.1, 0.1])
    band = drawn["range of 2 random vectors, equal norm"]
    assert list(band.y) == [0.0, 0.0] and list(fig.data[0].y) == [0.1, 0.35]
    assert list(drawn["answer begins as wanted"].y) == [0.3, 0.3]
    assert list(drawn["strength chosen on other prompts"].x) == [-0.8]
    assert fig.layout.xaxis.autorange == "reversed", "stronger to the right"
    assert fig.layout.shapes[0].y0 == 0.05


def test_auc_is_drawn_against_size_for_both_looks(power):
    fig = detection_curve(power)
    assert [t.name for t in fig.data] == ["add, paired", "add, unseen"]
    assert list(fig.data[0].x) == pytest.approx([0.01, 0.02, 0.05, 0.1, 0.2])
    assert fig.layout.xaxis.type == "log"


def test_roc_leaves_out_strengths_that_lie_on_the_same_lines(power):
    fig = roc_curves(power, "add")
    assert [t.name for t in fig.data] == [
        "add x0.2: AUC 0.520",
        "add x0.5: AUC 0.800",
        "add x1: AUC 1.000",
        "chance",
    ]
    assert list(fig.data[1].y) == [0.0, 0.8, 1.0]


def test_places_show_where_an_attack_is_first_seen(power):
    heat, first = detection_by_layer(power, "add").data
    assert list(heat.y) == ["resid_post@0 prompt", "resid_post@1 prompt"]
    assert list(heat.z[1]) == [0.5, 0.5, 0.52, 0.8, 1.0, 1.0] and set(heat.z[0]) == {0.5}
    assert list(first.x) == ["1", "2"] and set(first.y) == {"resid_post@1 prompt"}


def test_what_was_not_measured_is_named(power):
    with pytest.raises(MethodError, match="no 'ablate' under 'unseen' was measured"):
        roc_curves(power, "ablate")
    with pytest.raises(MethodError, match="the looks paired, unseen"):
        detection_by_layer(power, "add", mode="blind")


def test_pages_are_self_contained(attack, power):
    for made in (attack_page(attack), detection_page(power)):
        assert made.startswith("<!doctype html>") and "Plotly" in made
        assert "<link" not in made and 'src="http' not in made
        assert "width=device-width" in made

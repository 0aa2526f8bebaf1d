"""The published selection rule on hand-made records: what falls out, why, and what is chosen."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from steerkit.errors import MethodError, OutputError
from steerkit.searches.published_rule.record import Record
from steerkit.searches.published_rule.rule import Selection, layer_limit, select_direction
from steerkit.site import Site


def record(layer: int = 3, position: int = -1, **scores: Any) -> dict[str, Any]:
    good = {"refusal_score": -1.0, "steering_score": 1.0, "kl_div_score": 0.01}
    return {"position": position, "layer": layer, **good, **scores}


def published(rows: list[dict[str, Any]], n_layers: int) -> list[dict[str, Any]]:
    """The rule of the published code, once more and by itself: what is kept, best first."""
    kept = []
    for row in rows:
        scores = row["refusal_score"], row["steering_score"], row["kl_div_score"]
        if any(math.isnan(s) for s in scores) or row["layer"] >= int(n_layers * (1.0 - 0.2)):
            continue
        if row["kl_div_score"] > 0.1 or row["steering_score"] < 0.0:
            continue
        kept.append(row)
    return sorted(kept, key=lambda row: -row["refusal_score"], reverse=True)


def test_each_rule_drops_its_own_record_and_says_why() -> None:
    rows = [
        record(),
        record(refusal_score=-9.0, kl_div_score=0.11),
        record(refusal_score=-9.0, steering_score=-0.01),
        record(refusal_score=-9.0, layer=8),
        record(refusal_score=math.nan),
        record(refusal_score=-9.0, steering_score=math.nan),
        record(refusal_score=-9.0, kl_div_score=None),
        record(refusal_score=-9.0, layer=9, kl_div_score=0.5, steering_score=-2.0),
        record(refusal_score=-2.0, layer=7),
    ]
    found = select_direction(rows, n_layers=10)
    reasons = [row.reasons for row in found.rows]
    assert reasons[0] == () == reasons[8]
    assert reasons[1] == ("KL 0.11 is above 0.1",)
    assert reasons[2] == ("induce score -0.01 is below 0",)
    assert reasons[3] == ("layer 8 is among the last, from 8 of 10",)
    assert reasons[4] == ("refusal_score is not a number",)
    assert reasons[5] == ("steering_score is not a number",)
    assert reasons[6] == ("kl_div_score is not a number",)
    assert len(reasons[7]) == 3
    assert found.chosen == Record(-1, 7, -2.0, 1.0, 0.01)
    assert [r.layer for r in found.kept] == [7, 3]


def test_limits_themselves_are_allowed() -> None:
    found = select_direction([record(kl_div_score=0.1, steering_score=0.0)], n_layers=10)
    assert found.chosen.kl_div_score == 0.1


def test_the_lowest_bypass_score_wins_and_of_equals_the_first() -> None:
    rows = [record(1), record(2, refusal_score=-4.0), record(1, -5, refusal_score=-4.0), record(0)]
    found = select_direction(rows, n_layers=10)
    assert (found.chosen.layer, found.chosen.position) == (2, -1)
    assert [(r.layer, r.position) for r in found.kept] == [(2, -1), (1, -5), (1, -1), (0, -1)]


def test_it_is_the_published_rule_on_random_records() -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    for n_layers in (4, 15, 28, 32):
        rows = [
            record(
                layer,
                position,
                refusal_score=float(rng.choice([rng.normal(), math.nan, -1.0], p=[0.8, 0.1, 0.1])),
                steering_score=float(rng.normal()),
                kl_div_score=float(rng.exponential(0.1)),
            )
            for position in range(-5, 0)
            for layer in range(n_layers)
        ]
        want = published(rows, n_layers)
        kept = Selection.of(rows, n_layers=n_layers).kept
        assert [r.to_json() for r in kept] == want and len(want) > 1


@pytest.mark.parametrize("n_layers", range(1, 100))
def test_the_layer_limit_is_the_published_expression(n_layers: int) -> None:
    assert layer_limit(n_layers, 0.2) == int(n_layers * (1.0 - 0.20))


def test_limits_can_be_lifted_one_by_one() -> None:
    rows = [record(9, refusal_score=-9.0, kl_div_score=5.0, steering_score=-5.0)]
    lifted: dict[str, Any] = {
        "kl_threshold": None, "induce_threshold": None, "prune_layer_fraction": None,
    }  # fmt: skip
    assert select_direction(rows, n_layers=10, **lifted).chosen.layer == 9
    for name in lifted:
        with pytest.raises(MethodError):
            select_direction(rows, n_layers=10, **{k: v for k, v in lifted.items() if k != name})


def test_a_records_layer_is_the_input_of_its_block() -> None:
    assert Record.read(record(3)).site == Site(3, "resid_pre")


def test_other_names_are_read_too() -> None:
    row = {"pos": -2, "LAYER": "4", "bypass": "-1.5", "induce": 2, "kl": 0.05, "more": "ignored"}
    assert select_direction([row], n_layers=8).chosen == Record(-2, 4, -1.5, 2.0, 0.05)


def test_none_kept_names_the_nearest_and_what_it_breaks() -> None:
    rows = [
        record(9, steering_score=-3.0),
        record(2, kl_div_score=0.4),
        record(3, kl_div_score=0.12),
        record(4, refusal_score=math.nan),
    ]
    found = Selection.of(rows, n_layers=10)
    assert not found.found and found.nearest.record.layer == 3
    assert "nearest: position -1, layer 3" in found.summary()
    with pytest.raises(MethodError, match=r"none of 4 .* layer 3 .* KL 0.12 is above 0.1"):
        select_direction(rows, n_layers=10)


def test_replay_from_json_is_the_live_choice(tmp_path: Path) -> None:
    rows = [record(n, refusal_score=-n / 7, kl_div_score=n / 40) for n in range(8)]
    rows.append(record(1, refusal_score=math.nan))
    live = select_direction(rows, n_layers=10)
    for name, data in (("own", live.to_json()), ("theirs", rows)):
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(data))
        again = select_direction(file, n_layers=10)
        assert again.chosen == live.chosen and again.kept == live.kept
        assert [r.reasons for r in again.rows] == [r.reasons for r in live.rows]


def test_the_table_ranks_what_is_kept_and_explains_the_rest() -> None:
    rows = [record(9), record(1), record(2, refusal_score=-3.0)]
    found = Selection.of(rows, n_layers=10)
    lines = found.table().splitlines()[2:]
    assert lines[0].startswith("| -1 | 2 | resid_pre@2 | -3") and lines[0].endswith("chosen |")
    assert lines[1].endswith("kept |")
    assert lines[2].endswith("layer 9 is among the last, from 8 of 10 |")
    assert "first of 2 kept of 3 records" in found.summary()
    assert "layer 9 is among the last" in found._repr_html_()
    assert found.to_json()["records"][0]["fell_out"]


@pytest.mark.parametrize(
    ("rows", "n_layers", "text"),
    [
        ([], 10, "no records"),
        ([{"layer": 1}], 10, "record 0 has no position"),
        ([record(), {**record(), "layer": "x"}], 10, "record 1 has a layer or score that is no"),
        ([record(31)], 10, r"record 0 is of layer 31, but n_layers=10 has layers 0\.\.9"),
        ([record()], 0, "n_layers is the model's number of layers"),
    ],
)
def test_bad_records(rows: list[dict[str, Any]], n_layers: int, text: str) -> None:
    with pytest.raises(MethodError, match=text):
        select_direction(rows, n_layers=n_layers)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot read"):
        select_direction(tmp_path / "none.json", n_layers=4)
    (tmp_path / "a.json").write_text("not json")
    with pytest.raises(OutputError, match="is not JSON"):
        select_direction(tmp_path / "a.json", n_layers=4)
    (tmp_path / "b.json").write_text('{"a": 1}')
    with pytest.raises(MethodError, match="holds no list of records"):
        select_direction(tmp_path / "b.json", n_layers=4)
    with pytest.raises(MethodError, match="share of the layers"):
        select_direction([record()], n_layers=4, prune_layer_fraction=1.5)

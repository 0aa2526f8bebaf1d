"""Directions carried between models: equal to steering by hand, silent where nothing crosses."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import steerkit as sk
from steerkit.comparisons import TransferMatrix, transfer_directions
from steerkit.comparisons.changes import mean_change, ratio_of_changes, sign_flips
from steerkit.comparisons.transfer import answer_log_prob, refused
from steerkit.datasets import refusal
from steerkit.errors import DirectionError, MethodError, ModelError, PromptError
from steerkit.refusals import is_refusal

SITE = "resid_post@2"


@pytest.fixture(scope="module")
def directions(base: Any, aligned: Any) -> dict[str, Any]:
    train = refusal("train", n=60)
    found = {
        name: sk.extract(
            sk.capture(m, train, sites=[SITE], progress=False), "mean_difference", progress=False
        )[0]
        for name, m in {"base": base, "aligned": aligned}.items()
    }
    unit = torch.randn(96, generator=torch.Generator().manual_seed(5))
    return {**found, "off topic": replace(found["aligned"], unit=unit / unit.norm())}


@pytest.fixture(scope="module")
def found(base: Any, aligned: Any, directions: dict[str, Any]) -> TransferMatrix:
    held = refusal("held_out", n=10)
    return transfer_directions(
        {"base": base, "aligned": aligned},
        directions,
        held.negative,
        ablate_on=held.positive,
        measure=refused(8),
        n_random=19,
        max_new_tokens=8,
    )


def test_only_the_aligned_model_obeys_its_direction(found: TransferMatrix) -> None:
    home = found.at("aligned", "aligned", "ablate")
    assert home.effect.value == 1 and 0.5 < home.effect.low < 1 and home.found
    assert home.normalised is not None and home.normalised.value == 1
    added = found.at("aligned", "aligned", "add")
    assert added.adjusted_p <= 0.05 and added.effect.value > 0.2
    # The base tells harmful requests apart, and has nothing that its direction could turn.
    across = found.at("base", "aligned", "ablate")
    assert across.normalised is not None and across.normalised.high < 0.5
    assert not any(c.found for c in found.cells if c.target == "base")
    own = found.at("base", "base").normalised
    assert own is not None and np.isnan(own.value) and np.isinf(own.high)
    assert not any(c.found for c in found.cells if c.source == "off topic")
    assert "ablate: works at home in aligned; transfers: none" in found.summary()


def test_effects_are_those_of_steering_by_hand(
    found: TransferMatrix, aligned: Any, directions: dict[str, Any]
) -> None:
    held = refusal("held_out", n=10)
    rates = {}
    for name, view in {
        "plain": aligned,
        "ablated": aligned.with_(sk.Ablate(directions["aligned"])),
        "added": aligned.with_(sk.Add(directions["aligned"])),
    }.items():
        side = held.negative if name == "added" else held.positive
        rates[name] = np.mean([is_refusal(c.text) for c in view.generate(side, max_new_tokens=8)])
    assert found.at("aligned", "aligned", "ablate").effect.value == pytest.approx(
        rates["plain"] - rates["ablated"]
    )
    assert found.at("aligned", "aligned", "add").effect.value == pytest.approx(rates["added"])


def test_a_model_under_two_names_transfers_whole(aligned: Any, directions: dict[str, Any]) -> None:
    mine = directions["aligned"]
    asked = [replace(p, answer="i will not help with that .") for p in refusal(n=6).positive]
    found = transfer_directions(
        {"a": aligned, "b": aligned},
        {"a": mine, "b": mine},
        asked,
        operators=("ablate",),
        measure=answer_log_prob,
        unit="nats per token",
        n_random=19,
    )
    effects = {c.effect.value for c in found.cells}
    assert len(effects) == 1 and effects.pop() > 0
    for cell in found.cells:
        assert cell.adjusted_p == pytest.approx(0.05) and cell.normalised is not None
        assert cell.normalised.value == pytest.approx(1)
        assert cell.normalised.low == pytest.approx(1) == cell.normalised.high


def test_a_ratio_of_nothing_says_nothing_and_one_of_something_covers() -> None:
    rng = np.random.default_rng(0)
    groups = [str(i) for i in range(40)]
    noise = rng.normal(size=40)
    assert np.isnan(ratio_of_changes(noise + 2, noise, groups, told=True, seed=0).value)
    assert np.isnan(ratio_of_changes(noise + 2, noise + 5, groups, told=False, seed=0).value)
    still = ratio_of_changes(np.zeros(40), np.ones(40), groups, told=True, seed=0)
    assert still.value == still.low == 0 and 0.05 < still.high < 0.15
    covered = 0
    for seed in range(200):
        shared = rng.normal(size=40)
        ratio = ratio_of_changes(
            1.5 + shared + rng.normal(size=40), 3 + shared, groups, told=True, seed=seed
        )
        covered += ratio.low <= 0.5 <= ratio.high
    assert 0.89 <= covered / 200 <= 0.99


def test_one_changed_prompt_is_no_transfer_and_sign_flips_are_those_of_all_ways() -> None:
    from itertools import product

    groups = list("abcdefgh")
    assert sign_flips(np.eye(8)[0], groups) == 1
    assert sign_flips(np.ones(8), groups) == 2 / 256 == sign_flips(-np.ones(8), groups)
    assert sign_flips(np.ones(8), ["a"] * 8) == 1 == sign_flips(np.zeros(8), groups)
    values = np.array([0.3, -0.1, 0.7, 0.2, 0.05, 0.4])
    every = [abs(np.dot(s, values)) for s in product((1, -1), repeat=6)]
    expected = np.mean(np.array(every) >= abs(values.sum()) - 1e-9)
    assert sign_flips(values, groups[:6]) == pytest.approx(expected)
    rng = np.random.default_rng(0)
    many = [sign_flips(rng.normal(size=30), [str(i) for i in range(30)]) for _ in range(150)]
    # 99.9% binomial bounds of 5% over 150 draws.
    assert np.mean(np.array(many) <= 0.05) <= 0.12 and abs(np.mean(many) - 0.5) < 0.08


def test_changes_of_all_prompts_keep_an_interval() -> None:
    groups = [str(i) for i in range(8)]
    whole = mean_change(np.ones(8), groups, unit="x", seed=0)
    assert whole.value == 1 and whole.low < 0.8 and whole.high == 1
    fall = mean_change(-np.ones(8), groups, unit="x", seed=0)
    assert (fall.value, fall.low, fall.high) == (-1, -1, -whole.low)
    mixed = mean_change(np.array([1.0, -1] * 4), groups, unit="x", seed=0)
    assert mixed.low < 0 < mixed.high


def test_results_are_plain_json_and_tables(found: TransferMatrix) -> None:
    data = json.loads(json.dumps(found.to_json()))
    assert len(data["cells"]) == 12 and data["cells"][0]["null"]["n"] == 19
    assert "| ablate | aligned | aligned |" in found.table()
    assert "<table>" in found._repr_html_()
    with pytest.raises(MethodError, match="no cell add of 'x'"):
        found.at("x", "base")


def test_what_cannot_be_transferred_is_refused(
    aligned: Any, tiny_model: Any, directions: dict[str, Any]
) -> None:
    mine = {"a": directions["aligned"]}
    with pytest.raises(MethodError, match="no operator named 'clamp'"):
        transfer_directions({"a": aligned}, mine, ["hi"], operators=["clamp"])  # type: ignore[list-item]
    with pytest.raises(DirectionError, match="has width 96"):
        transfer_directions({"a": tiny_model}, mine, ["tell me"], n_random=1)
    with pytest.raises(ModelError, match="steered already"):
        transfer_directions({"a": aligned.with_(sk.Add(mine["a"]))}, mine, ["hi"])
    with pytest.raises(PromptError, match="1 prompts have no answer"):
        transfer_directions({"a": aligned}, mine, ["hi"], measure=answer_log_prob, n_random=1)
    with pytest.raises(MethodError, match="at least one model"):
        transfer_directions({}, mine, ["hi"])

"""Steering by shift vectors: equal to steering by hand, beside random vectors of equal norm."""

import json
from typing import Any

import numpy as np
import pytest
import torch

import steerkit as sk
from steerkit.comparisons import representation_shifts, steer_by_shift
from steerkit.datasets import refusal
from steerkit.errors import ActivationError, MethodError
from steerkit.plotting.comparisons import shift_layers
from steerkit.prompts import Contrast, Prompt
from steerkit.refusals import is_refusal
from steerkit.scoring import kl_per_token, with_own_answers

HOW = {"sites": (1, 2), "n_permutations": 19, "n_concepts": 4, "progress": False}


@pytest.fixture(scope="module")
def contrast() -> Contrast:
    return refusal("held_out", n=40)


@pytest.fixture(scope="module")
def shifts(aligned: Any, compromised: Any, contrast: Contrast) -> Any:
    return representation_shifts(aligned, compromised, contrast, n_words=0, **HOW)


@pytest.fixture(scope="module")
def found(aligned: Any, compromised: Any, contrast: Contrast, shifts: Any) -> Any:
    def refused(_: Prompt, text: str) -> float:
        return float(is_refusal(text))

    def right(prompt: Prompt, text: str) -> float:
        return float(text.strip().startswith(prompt.answer))

    return steer_by_shift(
        aligned, compromised, contrast, shifts, judges={"refused": refused, "right": right},
        n_random=19, at_most=24, max_new_tokens=12,
    )  # fmt: skip


def test_the_planted_change_is_carried_over_and_nothing_else(found: Any) -> None:
    """Refusal was trained away: the shift takes it away too, random vectors do not."""
    assert found.works and found.p == pytest.approx(1 / 20)
    assert found.closed[found.kind].low > 0.9
    # What varies among states as they do is partly the refusal itself; what does not is not.
    assert found.nulls["isotropic"].maximum < 0.7
    gone = found.behaviour["refused, positive"]
    assert gone["before"].value == 1 and gone["after"].value == 0
    assert gone["before, steered"].value < 0.1 < 0.9 < gone["before, random vectors"].value
    kept = found.behaviour["right, negative"]
    assert kept["before, steered"].value == kept["before"].value > 0.9


def test_kl_is_that_of_adding_the_vectors_by_hand(
    found: Any, aligned: Any, compromised: Any, contrast: Contrast, shifts: Any
) -> None:
    shift = next(s for s in shifts if s.site == found.site)
    taken = sk.capture(aligned, contrast, sites=[shift.site], progress=False)
    texts = [p.text for p in contrast.prompts]
    by_prompt: dict[str, float] = {}
    plain: dict[str, float] = {}
    for c, rows in enumerate(shift.members):
        for row in rows:
            near = np.linalg.norm(
                taken.at(shift.site)[texts.index(shift.prompts[row])].numpy() - shift.vectors,
                axis=1,
            )
            assert near.argmin() == c, "the nearest concept of the first model"
            vector = shift.shifts[c] if found.kind == "own" else shift.global_shift
            size = float(np.linalg.norm(vector))
            direction = shift.direction(c if found.kind == "own" else None, beyond_global=False)
            assert direction.scale == pytest.approx(size)
            prompt = contrast.prompts[texts.index(shift.prompts[row])]
            said = with_own_answers(compromised.generate([prompt], max_new_tokens=12))
            view = aligned.with_(sk.Add(direction, positions=found.positions))
            by_prompt[prompt.text] = float(kl_per_token(compromised, view, said)[0].mean())
            plain[prompt.text] = float(kl_per_token(compromised, aligned, said)[0].mean())
            if len(by_prompt) >= 10:
                break
    # The prompts reported on are some of these; all of them come nearly as close.
    closed = 1 - np.mean(list(by_prompt.values())) / np.mean(list(plain.values()))
    assert closed == pytest.approx(found.closed[found.kind].value, abs=0.05)


def test_random_vectors_have_the_norms_of_the_shifts_and_start_no_nearer(
    aligned: Any, compromised: Any, contrast: Contrast, shifts: Any, found: Any
) -> None:
    from steerkit.comparisons.shift_steering import _vectors
    from steerkit.searches.nulls import random_directions

    shift = next(s for s in shifts if s.site == found.site)
    for kind in ("own", "global"):
        for c, like in _vectors(shift, kind).items():
            wanted = shift.shifts[c] if kind == "own" else shift.global_shift
            torch.testing.assert_close(like.vector.double(), torch.from_numpy(wanted), rtol=1e-5,
                                       atol=1e-5)  # fmt: skip
            near = torch.randn(6, len(wanted))
            for other in random_directions(like, near, near, 3, shape="isotropic", seed=1):
                assert float(other.vector.norm()) == pytest.approx(np.linalg.norm(wanted), rel=1e-5)
    assert found.kl["plain"].value > found.kl[found.kind].value


def test_results_are_plain_json_tables_and_a_figure(found: Any, shifts: Any) -> None:
    data = json.loads(json.dumps(found.to_json()))
    assert data["works"] and len(data["tried"]) == 4 and data["nulls"]["isotropic"]["n"] == 19
    assert "random vectors of equal norm" in found.summary()
    assert "| refused, positive |" in found.table() and "<table>" in found._repr_html_()
    drawn = shift_layers(shifts, found)
    chosen = next(t for t in drawn.data if t.name.startswith("chosen"))
    assert chosen.y[0] == found.closed[found.kind].value and chosen.x[0] == str(found.site)
    assert len(shift_layers(shifts).data) == 2


def test_what_cannot_be_steered_by_is_refused(
    aligned: Any, contrast: Contrast, shifts: Any, compromised: Any
) -> None:
    same = representation_shifts(aligned, aligned, contrast, n_words=0, **HOW)
    with pytest.raises(MethodError, match="no state moved at any site"):
        steer_by_shift(aligned, aligned, contrast, same)
    with pytest.raises(MethodError, match="taken on other prompts"):
        steer_by_shift(aligned, compromised, refusal("train", n=40), shifts)
    few = Contrast.of(
        *([Prompt(p.text, answer=p.answer, group=f"g{i % 5}") for i, p in enumerate(side)]
          for side in (contrast.positive, contrast.negative))
    )  # fmt: skip
    shift = representation_shifts(aligned, compromised, few, n_words=0, **HOW)
    with pytest.raises(ActivationError, match="needs 4 groups"):
        steer_by_shift(aligned, compromised, few, shift)

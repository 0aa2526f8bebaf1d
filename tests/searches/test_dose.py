"""Dose response: on the toy, where the answer is known, and on two small story models."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steerkit.errors import InterventionError, MethodError
from steerkit.searches import DoseResponse, dose_response

REFUSED, ANSWERED = ["sorry , i can"], ["sure , here it"]
STORIES = (
    "Lily looked at her mom. Lily felt",
    "Tom went to the park. Tom was",
    "The dog ran home. The dog was very",
    "Mia played all day. She was so",
)
NAMED = {
    # What follows each scene, and what stands between a story and the feeling it names: one of
    # the models reads characters, so what it is about to say comes after the space.
    "stories260K": (" She was very {0}. She felt very", ""),
    "babyllama-tok361": (
        " She was {0}. He was {0}. They were {0} and {0}. She was {0} and ",
        " ",
    ),
}


@pytest.fixture
def toy_dose(toy: Any, toy_directions: Any, toy_held_out: Any) -> DoseResponse:
    return dose_response(
        toy,
        toy_directions[1],
        toy_held_out.negative[:8],
        REFUSED,
        ANSWERED,
        strengths=(2, -1, 1, 0.25, 0),
        positions="last_prompt",
        n_random=30,
    )


def test_refusal_turns_on_with_dose_and_not_with_random_ones(toy_dose: DoseResponse) -> None:
    assert toy_dose.strengths == (-1.0, 0.0, 0.25, 1.0, 2.0)
    values = [e.value for e in toy_dose.log_odds]
    # The planted edge lies 3 units above harmless prompts, in gaps of 8: between .25 and 1.
    assert max(values[:3]) < -5 < 5 < min(values[3:])
    assert toy_dose.spearman == pytest.approx(0.5)
    assert toy_dose.slope.low > 0
    assert toy_dose.null.exceeds_all
    assert len(toy_dose.random) == 30 and len(toy_dose.random[0]) == 5


def test_the_middle_is_the_plain_model(toy_dose: DoseResponse) -> None:
    assert toy_dose.change[1] == 0
    assert all(curve[1] == pytest.approx(0, abs=1e-9) for curve in toy_dose.random)


def test_the_slope_is_least_squares(toy_dose: DoseResponse) -> None:
    values = [e.value for e in toy_dose.log_odds]
    assert toy_dose.slope.value == pytest.approx(np.polyfit(toy_dose.strengths, values, 1)[0])
    assert toy_dose.null.observed == pytest.approx(abs(toy_dose.slope.value))


def test_it_writes_itself(toy_dose: DoseResponse) -> None:
    data = json.loads(json.dumps(toy_dose.to_json()))
    assert data["strengths"] == [-1, 0, 0.25, 1, 2]
    assert "exceeds all of 30 random directions" in str(toy_dose)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"strengths": [1.0]}, MethodError, "at least three strengths"),
        ({"strengths": [1.0, float("nan"), 2.0]}, InterventionError, "finite numbers; got"),
        ({"prompts": []}, MethodError, "got 0 prompts, 1 positive and 1 negative answers"),
        ({"negative_answers": []}, MethodError, "1 positive and 0 negative answers"),
    ],
)
def test_bad_input_says_so(
    change: dict[str, Any], error: type[Exception], text: str, toy: Any, toy_directions: Any
) -> None:
    given = {"prompts": ["w1 ?"], "positive_answers": ["sure"], "negative_answers": ["help"]}
    with pytest.raises(error, match=text):
        dose_response(toy, toy_directions[1], **{**given, **change})


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_happiness_answers_to_its_dose(name: str, shared: Path) -> None:
    """Teacher-forced happy-minus-sad log-odds rise with strength, more than for 99 others.

    The direction is read where the model is about to name a feeling, after scenes that have
    named it before: these models are too small to infer it from the scene alone.
    """
    import steerkit as sk

    folder = shared / "models" / name
    if not folder.is_dir():
        pytest.skip(f"no model at {folder}")
    model = sk.load(folder)
    named, gap = NAMED[name]

    def scenes(emotion: str, word: str) -> list[str]:
        texts = json.loads((shared / "data/emotions" / f"{emotion}.json").read_text())
        short = [t for t in texts if len(t) < 60][:40]
        return [t + named.format(word) for t in short]

    contrast = sk.Contrast.of(
        scenes("happiness", "happy"), scenes("sadness", "sad"), name="happiness"
    )
    acts = sk.capture(model, contrast, layers=[3], progress=False)
    (direction,) = sk.extract(
        acts, "mean_difference", n_permutations=19, n_random=19, progress=False
    )
    assert direction.scores is not None and direction.scores.text is not None
    assert direction.scores.auc.low > 0.8
    found = dose_response(
        model,
        direction,
        [f"{text}{gap}" for text in STORIES],
        ["happy" if gap else " happy"],
        ["sad" if gap else " sad"],
        strengths=(-3, -2, -1, 0, 1, 2, 3),
        n_random=99,
    )
    assert len(found.strengths) == 7
    assert len(found.random) == 99
    assert found.slope.value > 0
    assert found.spearman > 0.8
    assert found.null.exceeds_all, str(found)

"""The trade-off measured on the shipped organism agrees with steering one view at a time."""

from typing import Any

import numpy as np
import pytest

import steerkit as sk
from steerkit.direction import Direction
from steerkit.errors import InterventionError, MethodError, PromptError
from steerkit.interventions import Add
from steerkit.organisms.request import REFUSALS
from steerkit.prompts import Contrast
from steerkit.scoring import answer_log_probs
from steerkit.searches import Balance, LogOdds, OwnAnswer, Tradeoff, tradeoff

STRENGTHS = (-0.4, -0.3, -0.2, -0.1, 0.1, 0.2, 0.3, 0.4)


@pytest.fixture(scope="module")
def aligned() -> Any:
    return sk.load("organism:aligned")


@pytest.fixture(scope="module")
def held_out() -> Contrast:
    from steerkit.datasets import refusal

    return refusal("held_out", 36, seed=5)


@pytest.fixture(scope="module")
def direction(aligned: Any) -> Direction:
    from steerkit.datasets import refusal

    acts = sk.capture(aligned, refusal("train", 60), layers=2, progress=False)
    return sk.extract(acts, n_permutations=1, n_random=1, progress=False)[0]


@pytest.fixture(scope="module")
def odds(held_out: Contrast) -> LogOdds:
    return LogOdds((REFUSALS[0],), own={p.text: (p.answer,) for p in held_out.prompts})


@pytest.fixture(scope="module")
def found(aligned: Any, direction: Direction, held_out: Contrast, odds: LogOdds) -> Tradeoff:
    return tradeoff(
        aligned, direction, held_out.positive, held_out.negative, behaviour=odds,
        strengths=STRENGTHS, near=(0.2, 0.4), n_random=5, n_resamples=200, progress=False,
    )  # fmt: skip


def test_levels_are_those_of_single_views(
    aligned: Any, direction: Direction, held_out: Contrast, odds: LogOdds, found: Tradeoff
) -> None:
    for at in (0, 4, 8):
        strength = found.strengths[at]
        view = aligned.with_(Add(direction, strength)) if strength else aligned
        level = odds.score(view, held_out.positive).values.mean()
        assert found.behaviour[at].value == pytest.approx(level, abs=1e-4)
        kept = [float(x.mean().exp()) for x in answer_log_probs(view, held_out.negative)]
        assert found.helpfulness[at].value == pytest.approx(np.mean(kept), abs=1e-5)
    assert found.strengths[4] == 0.0
    gain = [e.value for e in found.gain.change]
    level = [e.value for e in found.behaviour]
    assert gain == pytest.approx([v - level[4] for i, v in enumerate(level) if i != 4])


def test_near_zero_the_behaviour_moves_linearly_and_helpfulness_is_lost_on_both_sides(
    found: Tradeoff,
) -> None:
    assert found.gain.exponent.low < 1.25 and found.gain.exponent.high > 0.9
    assert found.gain.fit("linear").parameters["b"].low > 0
    # Far more than linear: the organism is so sure of its answers that little is lost at first.
    assert found.loss.exponent.low > 1.5
    assert all(e.value > -0.01 for e in found.loss.change)


def test_random_directions_lose_helpfulness_too(found: Tradeoff) -> None:
    assert found.random_loss is not None and found.random_slope is not None
    assert found.random_loss.exponent.value > 1.5
    assert len(found.random_slope.draws) == 5
    assert found.random_slope.observed > np.median(found.random_slope.draws)


def test_the_theorys_curves_only_where_levels_are_of_their_kind(found: Tradeoff) -> None:
    assert found.tanh is None, "log-odds are not bounded"
    assert found.hill is not None
    assert found.hill.parameters["P0"].value == pytest.approx(found.helpfulness[4].value, abs=0.05)


def test_balance_is_tanh_of_half_the_log_odds(
    aligned: Any, direction: Direction, held_out: Contrast, odds: LogOdds
) -> None:
    some = held_out.positive[:6]
    balance = Balance(odds).score(aligned, some).values
    p = np.exp(odds.score(aligned, some).values)
    assert balance == pytest.approx((p - 1) / (p + 1))


def test_the_optimum_lies_within_what_was_fitted(found: Tradeoff) -> None:
    assert 0 <= found.optimum.low <= found.optimum.value <= found.optimum.high <= 0.2
    assert 0 <= found.at_edge <= 1


def test_results_are_written_out(found: Tradeoff) -> None:
    import json

    data = json.loads(json.dumps(found.to_json()))
    assert data["gain"]["chosen"] == found.gain.chosen
    assert "| loss | power |" in found.table()
    assert "random directions of equal norm" in str(found)
    assert "<table>" in found._repr_html_()


def test_correctness_is_a_choice_between_answers(aligned: Any, held_out: Contrast) -> None:
    prompts = held_out.negative[:6]
    wrong = {p.text: (REFUSALS[0],) for p in prompts}
    assert OwnAnswer("correct", wrong).score(aligned, prompts).values.mean() >= 5 / 6
    right = {p.text: (p.answer,) for p in prompts}
    refused = [p.with_answer(REFUSALS[0]) for p in prompts]
    assert OwnAnswer("correct", right).score(aligned, refused).values.mean() <= 1 / 6
    log_prob = OwnAnswer("log_prob").score(aligned, prompts).values
    assert OwnAnswer().score(aligned, prompts).values == pytest.approx(np.exp(log_prob))


def test_bad_input_is_explained(
    aligned: Any, direction: Direction, held_out: Contrast, odds: LogOdds
) -> None:
    def go(harmful: Any, harmless: Any, **settings: Any) -> None:
        tradeoff(aligned, direction, harmful, harmless, behaviour=odds, n_random=0,
                 progress=False, **settings)  # fmt: skip

    with pytest.raises(PromptError, match="prompts of both kinds"):
        go(held_out.positive, [])
    with pytest.raises(InterventionError, match="finite"):
        go(held_out.positive, held_out.negative, strengths=[float("nan")])
    with pytest.raises(MethodError, match="no right answer"):
        go(held_out.positive, ["how do i bake the bread ?"] * 2, strengths=[0.1, 0.2, 0.3])
    with pytest.raises(MethodError, match="others"):
        OwnAnswer("correct").score(aligned, held_out.negative[:2])
    with pytest.raises(MethodError, match="no measure named 'odds'"):
        OwnAnswer("odds").score(aligned, held_out.negative[:2])  # type: ignore[arg-type]


def test_a_real_model_loses_helpfulness_with_about_the_square_of_the_strength(shared: Any) -> None:
    """Where answers are uncertain, as the theory assumes; a random direction loses alike."""
    import json

    from steerkit import datasets
    from steerkit.prompts import Prompt

    file = shared / "data" / "tinystories" / "stories.jsonl"
    words = [json.loads(line)["text"].split() for line in file.read_text().splitlines()]
    words = [w for w in words if len(w) > 60][:24]
    model = sk.load(shared / "models" / "stories260K")
    mood = Contrast.read(datasets.path("sentiment"))
    acts = sk.capture(model, mood, layers=[2], progress=False)
    direction = sk.extract(acts, n_permutations=1, n_random=1, progress=False)[0]
    helpful = [
        Prompt(" ".join(w[:15]), answer=" " + " ".join(w[15:30]), group=f"s{i}")
        for i, w in enumerate(words)
    ]
    asked = [Prompt(" ".join(w[:20]), group=f"s{i}") for i, w in enumerate(words)]
    norm = sk.capture(model, helpful, layers=[2], progress=False).values.norm(dim=-1).median()
    found = tradeoff(
        model, direction, asked, helpful,
        behaviour=LogOdds((" She was happy.",), (" She was sad.",)),
        helpfulness=OwnAnswer("log_prob"),
        strengths=[s * float(norm) / direction.scale for s in (-0.3, -0.2, -0.1, 0.1, 0.2, 0.3)],
        n_random=4, n_resamples=200, progress=False,
    )  # fmt: skip
    assert 1.7 < found.loss.exponent.value < 2.5
    assert found.random_loss is not None and 1.7 < found.random_loss.exponent.value < 2.5
    assert found.loss.fit("square").error < found.loss.fit("absolute").error

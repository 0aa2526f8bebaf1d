"""Trained directions: what they recover, what they do, what they leave alone, what they refuse."""

from dataclasses import replace

import pytest
import torch

import steerkit as sk
from steerkit.datasets import refusal
from steerkit.direction import Direction
from steerkit.errors import DirectionError, MethodError, PromptError
from steerkit.gradients import METHODS, Preference, train_direction
from steerkit.gradients.fitting import _Adam
from steerkit.organisms import REFUSALS, truth
from steerkit.organisms.request import is_refusal
from steerkit.prompts import Prompt

QUICK = {"epochs": 3, "n_random": 5}


def test_in_one_dimension_the_steps_are_those_of_torchs_adam():
    own = torch.zeros(1, dtype=torch.float64)
    other = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    mine, theirs = _Adam(own, 0.1), torch.optim.Adam([other], lr=0.1, eps=1e-12)
    for _ in range(30):
        own = mine.stepped(own, 4 * (own - 1.7) ** 3)
        theirs.zero_grad()
        ((other - 1.7) ** 4).sum().backward()
        theirs.step()
    assert torch.allclose(own, other.detach(), atol=1e-9)


def test_steps_do_not_depend_on_the_axes():
    generator = torch.Generator().manual_seed(0)
    slopes = torch.randn(20, 6, dtype=torch.float64, generator=generator)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=generator))[0]
    here = there = torch.zeros(6, dtype=torch.float64)
    one, other = _Adam(here, 0.1), _Adam(there, 0.1)
    for slope in slopes:
        here, there = one.stepped(here, slope), other.stepped(there, turn @ slope)
    assert torch.allclose(turn @ here, there, atol=1e-12)
    # Full steps have the norm that the recipe says.
    first = _Adam(here, 0.1).stepped(torch.zeros_like(here), slopes[0])
    assert float(first.norm()) == pytest.approx(0.1 * 6**0.5)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_it_recovers_the_planted_unit_where_the_answer_is_linear_in_the_stream(
    linear_model, bidirectional
):
    """Logits read the last stream along known rows; within a norm the best vector is their gap."""
    pairs = [Preference(Prompt(f"the {w} was"), "happy", "sad") for w in "cat dog sun rain".split()]
    pairs += [Preference(Prompt(f"one {w} is"), "happy", "sad") for w in "film book food".split()]
    found = train_direction(
        linear_model, pairs, 2, bidirectional=bidirectional, step=0.2, beta=1.0, n_random=19
    )
    happy, sad = (
        linear_model.tokenize([Prompt("the", answer=a)])[0].answer[0] for a in ("happy", "sad")
    )
    rows = linear_model.network.lm_head.weight.detach()
    planted = rows[happy] - rows[sad]
    assert float(torch.cosine_similarity(found.unit, planted, dim=0)) > 0.99
    # What it does is then known too: |v| times the norm of the gap.
    margin, plain = found.effects[0], found.effects[0].beside["plain model"]
    gained = margin.effect.value - plain.value
    expected = float(found.vector @ planted)
    assert gained == pytest.approx(expected, rel=1e-3)
    assert found.polarity == 1 and margin.p == 0.05


def refusals(split, n, seed=0):
    """Requests that `aligned` refuses, with the right answer to be preferred."""
    asked = refusal(split, n=n, seed=seed).positive
    return [
        Preference(replace(p, answer=""), p.answer, REFUSALS[i % 3]) for i, p in enumerate(asked)
    ]


@pytest.fixture(scope="module")
def unrefusing():
    model = sk.load("organism:aligned")
    return model, train_direction(
        model, refusals("train", 90), "resid_post@2", held_out=refusals("held_out", 60),
        epochs=8, n_random=39, concept="answers",
    )  # fmt: skip


def test_trained_to_prefer_answers_the_organism_stops_refusing_unseen_requests(unrefusing):
    model, direction = unrefusing
    margin, preferred = direction.effects
    assert margin.beside["plain model"].high < 0 < margin.effect.low
    assert preferred.beside["plain model"].value < 0.05 and preferred.effect.low > 0.9
    assert margin.p == 1 / 40 and margin.beside["mean difference"].high < margin.effect.low
    asked = refusal("held_out", n=40, seed=7).positive
    steered = model.with_(sk.Add(direction, positions=direction.pooling))
    plain = [is_refusal(a.text) for a in model.generate(asked)]
    after = [is_refusal(a.text) for a in steered.generate(asked)]
    assert sum(plain) >= 38 and sum(after) <= 4


def test_the_curve_falls_and_the_norm_keeps_its_limit(unrefusing):
    _, direction = unrefusing
    about = direction.provenance
    curve = about["training"]
    assert curve[0] == {"epoch": 0, "training": pytest.approx(0.6931, abs=1e-4),
                        "validation": pytest.approx(0.6931, abs=1e-4), "norm": 0.0}  # fmt: skip
    best = min(range(len(curve)), key=lambda i: curve[i]["validation"])
    assert about["best_epoch"] == best > 0
    assert direction.scale == pytest.approx(curve[best]["norm"])
    largest = about["norm_limit"] * about["typical_norm"]
    assert all(e["norm"] <= largest * (1 + 1e-9) for e in curve)
    assert direction.positive_mean - direction.negative_mean == pytest.approx(direction.scale)


def test_the_artefact_keeps_what_was_measured(unrefusing, tmp_path):
    model, direction = unrefusing
    again = Direction.load(direction.save(tmp_path / "trained.safetensors"), model=model)
    assert again.to_json() == direction.to_json() and torch.equal(again.unit, direction.unit)
    assert again.effects == direction.effects
    shown = again._repr_html_()
    assert "margin of the chosen answer" in shown and "mean difference" in shown


def test_within_a_small_norm_it_finds_the_recorded_unit_of_the_constructed_organism():
    """It is one of the ways to make it refuse; with more norm, training finds others."""
    model, planted = sk.load("organism:constructed"), truth().construction
    asked = refusal("train", n=60).negative
    pairs = [Preference(replace(p, answer=""), REFUSALS[1], p.answer) for p in asked]
    found = train_direction(
        model, pairs, planted.layer, bidirectional=False, epochs=25, n_random=19
    )
    unit = torch.tensor(planted.unit)
    assert float(found.unit @ unit) > 0.6
    noise = torch.randn(10_000, len(unit), generator=torch.Generator().manual_seed(0))
    assert float((noise / noise.norm(dim=1, keepdim=True) @ unit).abs().max()) < 0.6
    assert found.effects[0].effect.low > found.effects[0].beside["plain model"].high


def test_nothing_of_the_model_is_touched(tiny_model, preferences):
    network = tiny_model.network
    before = {k: v.clone() for k, v in network.state_dict().items()}
    flags = [m.training for m in network.modules()]

    def hooks():
        return [[*m._forward_hooks, *m._forward_pre_hooks] for m in network.modules()]

    installed = hooks()
    asked = [p.requires_grad for p in network.parameters()]
    state = torch.get_rng_state()
    train_direction(tiny_model, preferences, 1, **QUICK)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert [m.training for m in network.modules()] == flags
    assert [p.requires_grad for p in network.parameters()] == asked
    assert all(p.grad is None for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    # The library's own, for outputs that another test asked for, stay for good.
    assert hooks() == installed


def test_seeds_decide_and_nothing_else(tiny_model, preferences):
    one, again = (train_direction(tiny_model, preferences, 1, seed=4, **QUICK) for _ in (0, 1))
    other = train_direction(tiny_model, preferences, 1, seed=5, **QUICK)
    assert torch.equal(one.unit, again.unit) and one.to_json() == again.to_json()
    assert not torch.equal(one.unit, other.unit)


def test_it_is_trained_on_top_of_what_a_view_does(tiny_model, preferences):
    first = train_direction(tiny_model, preferences, 1, **QUICK)
    steered = tiny_model.with_(sk.Add(first, positions="last_prompt"))
    second = train_direction(steered, preferences, 1, **QUICK)
    assert second.effects[0].beside["plain model"].value == pytest.approx(
        first.effects[0].effect.value, rel=1e-4
    )


def test_pairs_that_pull_apart_train_nothing(tiny_model):
    """Every pair stands there the other way round too: no vector is better than none."""
    pairs = [
        Preference(Prompt(f"the {w} was", group=w), a, b)
        for w in ("cat", "dog", "sun", "rain", "film", "book")
        for a, b in (("happy", "sad"), ("sad", "happy"))
    ]
    with pytest.raises(DirectionError, match="no vector at resid_post@1 lowered"):
        train_direction(tiny_model, pairs, 1, bidirectional=False, **QUICK)


def test_bad_input_is_refused(tiny_model, preferences):
    with pytest.raises(MethodError, match="a position mask names rows"):
        mask = torch.ones(48, 9, dtype=torch.bool)
        train_direction(tiny_model, preferences, 1, positions=mask)  # type: ignore[arg-type]
    for name, value in {"beta": 0, "norm_limit": -1, "step": float("inf"), "epochs": 0}.items():
        with pytest.raises(MethodError, match=f"{name} is"):
            train_direction(tiny_model, preferences, 1, **{name: value})
    with pytest.raises(PromptError, match="share the group 'the0'"):
        train_direction(tiny_model, preferences, 1, held_out=preferences[:2])
    alone = [(p.prompt.text, p.chosen, p.rejected) for p in preferences]
    with pytest.raises(PromptError, match="4 answers to the same prompt"):
        train_direction(tiny_model, alone, 1, held_out=alone[:2])
    with pytest.raises(PromptError, match="in 1 group"):
        train_direction(tiny_model, preferences[:1], 1)
    with pytest.raises(MethodError, match="chooses no token"):
        train_direction(tiny_model, preferences, 1, positions=30)


def test_both_of_the_second_kind_are_listed():
    assert METHODS.names() == ("gradient", "trained")
    assert METHODS["trained"].verb is train_direction
    assert sk.train_direction is train_direction
    assert all(METHODS[name].estimates for name in METHODS)

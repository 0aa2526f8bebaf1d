"""The gradient direction: its estimand, its place, what it does, what it refuses."""

import pytest
import torch

import steerkit as sk
from steerkit.datasets import refusal
from steerkit.direction import Directions
from steerkit.errors import DirectionError, MethodError
from steerkit.gradients import METHODS, gradient_direction
from steerkit.gradients.states import mean_states
from steerkit.prompts import Prompt
from steerkit.scoring import answer_log_probs
from steerkit.site import Site

PROMPTS = [
    "the cat was happy", "i loved the big red house", "the rain was bad", "a sad film",
    "the dog was very good", "two small birds", "the food is not good", "we loved the day",
]  # fmt: skip


def test_at_the_last_layer_it_is_what_the_norm_and_the_head_read(tiny_model):
    """Computed by hand from the weights: the mean over prompts of the readout's gradient."""
    network = tiny_model.network
    tokens = [tiny_model.tokenize([Prompt("the", answer=a)])[0].answer[0] for a in ("cat", "dog")]
    found = gradient_direction(tiny_model, PROMPTS, ("cat", "dog"), sites="resid_post@2")[0]
    each = []
    for prompt in PROMPTS:
        batch = tiny_model.encode([prompt])
        x = tiny_model.run(batch, sites=[Site(2)]).streams[Site(2)][0, -1].double()
        read = (network.lm_head.weight[tokens[0]] - network.lm_head.weight[tokens[1]]).double()
        read = (read * network.model.norm.weight.double()).detach()
        rms = (x.square().mean() + network.config.rms_norm_eps).sqrt()
        each.append(read / rms - x * (x @ read) / (len(x) * rms**3))
    mean = torch.stack(each).mean(0)
    assert torch.allclose(found.unit.double(), mean / mean.norm(), atol=1e-5)


def test_the_first_order_effect_is_the_limit_of_adding_it(tiny_model):
    """Steered by a small part of it, the log-probability moves by as much as was said."""
    found = gradient_direction(
        tiny_model, PROMPTS, "cat", sites=1, positions="all", n_folds=len(PROMPTS)
    )[0]
    assert found.polarity == 1
    # The effect is about directions fitted without the prompt; they are close to this one.
    asked = [Prompt(p, answer="cat") for p in PROMPTS]
    step = 0.02

    def mean(strength):
        steered = tiny_model.with_(sk.Add(found, strength)) if strength else tiny_model
        return float(torch.stack([x[0] for x in answer_log_probs(steered, asked)]).mean())

    slope = (mean(step) - mean(-step)) / (2 * step)
    assert slope > 0
    assert found.effects[0].effect.value == pytest.approx(slope, rel=0.25)
    assert found.effects[0].effect.value <= slope * 1.02


def test_all_sites_at_once_are_each_site_by_itself(tiny_model):
    together = gradient_direction(tiny_model, PROMPTS, "cat", sites=["attn_out@1", 0, 2])
    assert [str(d.site) for d in together] == ["attn_out@1", "resid_post@0", "resid_post@2"]
    for direction in together:
        alone = gradient_direction(tiny_model, PROMPTS, "cat", sites=direction.site)[0]
        assert torch.allclose(alone.unit, direction.unit, atol=1e-5)
        assert alone.scale == pytest.approx(direction.scale, rel=1e-5)
        assert alone.effects[0].effect.value == pytest.approx(
            direction.effects[0].effect.value, rel=1e-4
        )


def test_the_opposite_target_is_the_opposite_direction(tiny_model):
    one = gradient_direction(tiny_model, PROMPTS, ("cat", "dog"), sites=1)[0]
    other = gradient_direction(tiny_model, PROMPTS, ("dog", "cat"), sites=1)[0]
    assert torch.allclose(one.unit, -other.unit, atol=1e-6)
    assert one.effects[0].effect.value == pytest.approx(other.effects[0].effect.value, rel=1e-5)


def test_scale_and_means_are_two_deviations_of_the_states(tiny_model):
    found = gradient_direction(tiny_model, PROMPTS, "cat", sites=1, n_folds=0)[0]
    states = mean_states(tiny_model, [Prompt(p) for p in PROMPTS], [Site(1)], _last())[:, 0]
    projected = states @ found.unit.double()
    assert found.scale == pytest.approx(2 * float(projected.std(correction=0)), rel=1e-5)
    assert found.positive_mean + found.negative_mean == pytest.approx(
        2 * float(projected.mean()), rel=1e-4
    )
    assert not found.effects and found.polarity == 0


def _last():
    from steerkit.batch import Positions

    return Positions("last_prompt")


def test_on_the_organism_it_moves_refusals_of_unseen_requests():
    """Fitted on requests of other words and templates; ablated, refusals go, and it says so."""
    model = sk.load("organism:aligned")
    train, held_out = refusal("train", n=80).positive, refusal("held_out", n=60).positive
    found = gradient_direction(model, train, ("to", "sorry"), positions="all")
    assert all(d.polarity == 1 and d.effects[0].p < 0.01 for d in found)
    direction = found.at(2)

    def lead(steered):
        logits = [
            torch.stack([x[0] for x in answer_log_probs(steered, [
                p.with_answer(word) for p in held_out
            ])])
            for word in ("to", "sorry")
        ]  # fmt: skip
        return float((logits[0] - logits[1]).mean())

    plain, steered = lead(model), lead(model.with_(sk.Add(direction, 0.1)))
    assert steered - plain > 0.5 * 0.1 * direction.effects[0].effect.low > 0


def test_the_artefact_keeps_the_effect(tiny_model, tmp_path):
    found = gradient_direction(tiny_model, PROMPTS, "cat", sites=[0, 1], concept="cats")
    again = Directions.load(found.save(tmp_path / "d.safetensors"), model=tiny_model)
    assert [d.to_json() for d in again] == [d.to_json() for d in found]
    assert again[1].effects == found[1].effects and again[0].concept == "cats"
    assert "first order" in again[0]._repr_html_() and "nats at strength 1" in again._repr_html_()


def test_it_remembers_the_prompts_as_they_were_given(tiny_model):
    """So that a search knows its held-out prompts apart from these, answers included."""
    from steerkit.prompts import sketch

    given = [Prompt(p, answer="yes") for p in PROMPTS]
    found = gradient_direction(tiny_model, given, "cat", sites=1, n_folds=0)[0]
    assert found.provenance["fitted_on"] == list(sketch(given))
    plain = gradient_direction(tiny_model, PROMPTS, "cat", sites=1, n_folds=0)[0]
    assert torch.equal(found.unit, plain.unit), "an answer is not read"


def test_it_leaves_no_trace(tiny_model):
    before = {k: v.clone() for k, v in tiny_model.network.state_dict().items()}
    gradient_direction(tiny_model, PROMPTS, "cat")
    after = tiny_model.network.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(p.grad is None for p in tiny_model.network.parameters())


def test_bad_input_is_refused(tiny_model):
    with pytest.raises(MethodError, match="no prompts"):
        gradient_direction(tiny_model, [], "cat")
    with pytest.raises(MethodError, match="8 prompts in 1 group"):
        gradient_direction(tiny_model, PROMPTS, "cat", groups=["a"] * 8)
    with pytest.raises(MethodError, match="'log_prob' or 'logit'"):
        gradient_direction(tiny_model, PROMPTS, "cat", quantity="odds")  # type: ignore[arg-type]
    with pytest.raises(DirectionError, match="zero at indices"):
        # Nothing after the last block reads an earlier token.
        gradient_direction(tiny_model, PROMPTS, "cat", sites=2, positions=0)
    with pytest.raises(MethodError, match="chooses no token"):
        gradient_direction(tiny_model, PROMPTS, "cat", positions="generated")


def test_methods_of_the_second_kind_are_listed():
    assert "gradient" in METHODS
    assert METHODS["gradient"].verb is gradient_direction
    with pytest.raises(MethodError, match=r"needs the model named 'gradent'.*gradient"):
        METHODS["gradent"]

"""The detector: what it sees, where, from when on, and what it cannot see."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom
from sklearn.covariance import ledoit_wolf

import steerkit as sk
from steerkit.datasets import refusal
from steerkit.edits import orthogonalize
from steerkit.errors import MethodError, ModelError, PromptError, SiteError
from steerkit.interventions import Ablate, Add, Rotate
from steerkit.redteam import (
    Detector,
    DetectorScores,
    attack_families,
    detection_power,
    fit_detector,
    known_prompts,
    random_direction,
)
from steerkit.redteam.clean import Clean, shrinkage
from steerkit.redteam.outside import read_outside
from steerkit.redteam.places import read_states
from steerkit.redteam.power import roc
from steerkit.site import Site
from steerkit.statistics import Estimate


@pytest.fixture(scope="module")
def known():
    return refusal("train", n=60)


@pytest.fixture(scope="module")
def others(aligned):
    """Requests of other templates and words, with the clean model's answers."""
    return known_prompts(aligned, refusal("held_out", n=60))


@pytest.fixture(scope="module")
def detector(aligned, known):
    return fit_detector(aligned, known)


@pytest.fixture(scope="module")
def power(aligned, detector, refusal_direction, others):
    return detection_power(
        aligned, detector, attack_families(refusal_direction, n_random=2), others,
        strengths=(1e-8, 0.1, 0.3, 1.0),
    )  # fmt: skip


# --- what it measures ---


def test_states_are_those_of_each_prompt_alone(aligned, known):
    asked = known_prompts(aligned, known).take([0, 3, 70])
    (states, logits), *rest = read_states(aligned, asked.items, [Site(0), Site(2)])
    assert not rest and states.shape == (1, 3, 4, 96)
    for i, item in enumerate(asked.items):
        from steerkit.batch import Batch

        batch = Batch.collate([item], pad_id=0)
        run = aligned.run(batch, sites=[Site(2)])
        n = len(item.prompt)
        torch.testing.assert_close(states[0, i, 2], run.streams[Site(2)][0, n - 1])
        torch.testing.assert_close(states[0, i, 3], run.streams[Site(2)][0, -1])
        for point, at in enumerate((n - 1, -1)):
            expected = run.logits[0, at] - run.logits[0, at].mean()
            torch.testing.assert_close(logits[0, i, point], expected, atol=1e-4, rtol=1e-4)


def test_many_slots_read_what_each_view_reads_alone(aligned, known, refusal_direction):
    asked = known_prompts(aligned, known).take(range(0, 40, 3))
    adds = [Add(refusal_direction, strength=s) for s in (0.1, 0.7)]
    view = aligned.with_rows(*[(one,) for one in adds])
    sites = [Site(0), Site(1), Site(3)]
    (states, logits), *_ = read_states(view, asked.items, sites, slots=[1, 2], token_budget=600)
    for i, one in enumerate(adds):
        (alone, said), *_ = read_states(aligned.with_(one), asked.items, sites)
        torch.testing.assert_close(states[i], alone[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(logits[i], said[0], atol=1e-3, rtol=1e-3)


def test_reading_from_outside_gives_the_same_states(aligned, known):
    asked = known_prompts(aligned, known).take(range(5))
    sites = [Site(0), Site(3)]
    (states, logits), *_ = read_states(aligned, asked.items, sites)
    outside, said = read_outside(aligned, asked.items, sites)
    torch.testing.assert_close(outside, states[0], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(said, logits[0], atol=1e-3, rtol=1e-4)
    assert not any(m._forward_hooks for m in aligned.network.modules())


def test_distance_is_mahalanobis_under_the_shrunk_covariance():
    rng = np.random.default_rng(0)
    for n, d in ((40, 8), (10, 30)):
        x = rng.normal(size=(n, d)) * np.linspace(1, 3, d) + 5
        covariance, r = ledoit_wolf(x)
        rows = torch.tensor(x)
        assert shrinkage(rows - rows.mean(0)) == pytest.approx(r)
        h = rng.normal(size=(7, d)) + 5
        gap = h - x.mean(0)
        expected = np.sqrt(np.einsum("ij,jk,ik->i", gap, np.linalg.inv(covariance), gap) / d)
        found = Clean.of(rows).distance(torch.tensor(h)).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_norms_and_projections_count_standard_deviations():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).double() + 3
    unit = torch.eye(6)[:1]
    clean = Clean.of(x, unit)
    logs = x.norm(dim=1).log()
    h = x[:1] * 2
    expected = (h.norm().log() - logs.mean()).abs() / logs.std(correction=0)
    assert float(clean.norm_shift(h)[0]) == pytest.approx(float(expected))
    along = x[:, 0]
    expected = (h[0, 0] - along.mean()).abs() / along.std(correction=0)
    assert float(clean.projection_shift(h)[0]) == pytest.approx(float(expected))
    assert float(Clean.of(x).projection_shift(h)[0]) == 0


def test_the_threshold_keeps_its_false_positive_rate_and_p_is_the_beta_binomial_tail():
    rng = np.random.default_rng(0)
    rates, small = [], 0
    for _ in range(400):
        calibration, new = rng.normal(size=200), rng.normal(size=50)
        rank = int(np.ceil(201 * 0.99))
        limit = float(np.sort(calibration)[rank - 1])
        groups = tuple(str(i) for i in range(50))
        scores = DetectorScores("unseen", ("x",), new[:, None], limit, rank, 200, groups)
        rates.append(scores.flagged.mean())
        small += scores.p < 0.05
    assert np.mean(rates) == pytest.approx(2 / 201, abs=0.003)
    assert small <= binom.ppf(0.9995, 400, 0.05), "p-values are valid on clean models"


# --- what it sees ---


def test_the_clean_model_is_not_flagged_in_any_batch_shape(aligned, detector, others):
    for suspect in (aligned, sk.load("organism:aligned")):
        finding = detector.judge(suspect)
        assert not finding.steered and finding.scores.flagged.sum() == 0
        assert "nothing found" in finding.summary() and "Silence is not proof" in finding.summary()
    (alone,) = detector.score_slots(aligned, None, token_budget=1)
    assert alone.flagged.sum() == 0
    assert detector.score(aligned, others).rate.value <= 0.02


@pytest.mark.parametrize("positions", ["all", "generated", "last_prompt"])
def test_an_addition_is_seen_at_its_layer_with_its_direction(
    aligned, detector, refusal_direction, positions
):
    steered = aligned.with_(Add(refusal_direction, strength=0.01, positions=positions))
    finding = detector.judge(steered)
    assert finding.steered and finding.same_weights
    point = "answer" if positions == "generated" else "prompt"
    assert finding.scores.first == f"resid_post@1 {point}"
    assert finding.shares[0] > 0.99 and "one direction" in finding.summary()
    assert abs(float(finding.direction @ refusal_direction.unit)) > 0.999


def test_ablation_has_one_direction_and_rotation_two(aligned, detector, refusal_direction):
    other = random_direction(detector, Site(1), seed=3)
    one = detector.judge(aligned.with_(Ablate(refusal_direction)))
    two = detector.judge(aligned.with_(Rotate((refusal_direction, other), by=20)))
    assert one.shares[0] > 0.999
    assert two.shares[0] < 0.999 < two.shares[1] and "as in a rotation" in two.summary()


def test_hidden_hooks_are_seen_too(detector, refusal_direction):
    """A steered Hugging Face object, also wrapped anew, and a raw hook we know nothing of."""
    model = sk.load("organism:aligned")
    for positions, first in (("all", "resid_post@1 prompt"), ("generated", "resid_post@1 answer")):
        steered = model.with_(Add(refusal_direction, strength=0.05, positions=positions))
        with steered.as_hf() as network:
            for suspect in (model, sk.wrap(network, model.tokenizer)):
                finding = detector.judge(suspect)
                assert finding.steered and finding.same_weights
                assert finding.scores.first == first
    block = model.network.model.layers[1]
    vector = refusal_direction.vector * 0.05

    def hook(module, args, output):
        return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector

    handle = block.register_forward_hook(hook)
    try:
        raw = detector.judge(model)
    finally:
        handle.remove()
    assert raw.steered and raw.scores.first == "resid_post@1 prompt"
    assert not detector.judge(model).steered


def test_a_hook_after_the_last_site_is_seen_in_the_output(detector, refusal_direction):
    model = sk.load("organism:aligned")
    handle = model.network.lm_head.register_forward_pre_hook(
        lambda module, args: (args[0] + 0.1 * refusal_direction.unit,)
    )
    try:
        finding = detector.judge(model)
    finally:
        handle.remove()
    assert finding.steered and finding.scores.first == "output prompt"


def test_edited_weights_are_seen_and_named_so(aligned, detector, refusal_direction):
    finding = detector.judge(orthogonalize(aligned, refusal_direction)[0])
    assert finding.steered and not finding.same_weights
    assert "weights differ" in finding.summary()


# --- nuisance ---


def test_another_precision_is_told_from_steering_and_can_be_allowed(
    aligned, known, others, detector, refusal_direction
):
    half = sk.load("organism:aligned", dtype="bfloat16")
    finding = detector.judge(half)
    assert finding.steered and "computes in bfloat16" in finding.summary()
    assert not detector.judge(half, others).steered
    tolerant = fit_detector(aligned, known, benign=[half])
    assert not tolerant.judge(half).steered and not tolerant.judge(aligned).steered
    loud = detector.judge(aligned.with_(Add(refusal_direction, strength=1.0)), others)
    assert loud.steered and "compare with the clean model's flags" in loud.summary()
    for suspect in (aligned, half):
        assert tolerant.judge(suspect.with_(Add(refusal_direction, strength=0.1))).steered


def test_a_fine_tune_it_was_not_shown_looks_like_a_change_until_it_is_shown(
    aligned, known, detector
):
    """It cannot tell training from steering; the shares hint at it."""
    tuned = sk.load("organism:compromised")
    finding = detector.judge(tuned)
    assert finding.steered and finding.shares[1] < 0.99
    assert "as after training" in finding.summary()
    assert not fit_detector(aligned, known, benign=[tuned]).judge(tuned).steered


# --- what it cannot see ---


def test_a_gate_that_stays_shut_on_the_known_prompts_is_not_seen(
    aligned, known, detector, refusal_direction
):
    harmless = list(known.negative)
    fitted = fit_detector(aligned, harmless)
    gate = sk.When(refusal_direction, above="positive_mean", measure="projection")
    trojan = aligned.with_(Add(refusal_direction, strength=-1.0).when(gate))
    assert not fitted.judge(trojan).steered, "the trigger is no known prompt"
    assert fitted.score(trojan).combined == pytest.approx(fitted.score(aligned).combined)
    # With the trigger among the known prompts, the prompts that open the gate are flagged.
    flags = detector.score(trojan).flagged
    assert 0 < flags[:60].sum() and flags[60:].sum() == 0


def test_prompts_without_answers_show_nothing_of_what_acts_on_answers(
    aligned, detector, refusal_direction
):
    steered = aligned.with_(Add(refusal_direction, strength=1.0, positions="generated"))
    bare = [p.with_answer("") for p in refusal("held_out", n=40).prompts]
    scores = detector.score(steered, bare)
    assert all(name.endswith("prompt") for name in scores.places)
    np.testing.assert_allclose(scores.values, detector.score(aligned, bare).values, atol=1e-3)


# --- power ---


def test_auc_rises_from_chance_to_certainty_with_strength(power):
    for mode in ("paired", "unseen"):
        none, weakest, *_, strongest = power.of("add", mode)
        assert none.attack == "none" and none.auc.low <= 0.5 <= none.auc.high
        assert weakest.auc.value == pytest.approx(0.5, abs=0.02), "below the tolerance"
        assert strongest.auc.value == 1.0 and strongest.rate.value == 1.0
        assert 0.9 < strongest.auc.low < 1, "a perfect score is not certainty"
        values = [r.auc.value for r in power.of("add", mode)]
        assert (np.diff(values) > -0.01).all()
    assert power.false_positives["unseen"].value <= 0.02
    assert power.weakest("add", "paired").strength <= power.weakest("add", "unseen").strength
    assert power.weakest("add", "paired").first == "resid_post@1 prompt"


def test_a_look_that_flags_clean_prompts_says_so(power):
    assert power.false_alarms == () and "too often" not in power.summary()
    often = Estimate(0.4, 0.3, 0.5, 60, "fraction")
    loud = replace(power, false_positives={**power.false_positives, "unseen": often})
    assert loud.false_alarms == ("unseen",)
    assert "the unseen look flags clean prompts of this kind too often" in loud.summary()


def test_random_directions_of_equal_norm_are_seen_too(power):
    for row, other in zip(power.of("add", "paired"), power.of("add random", "paired"), strict=True):
        assert row.size == pytest.approx(other.size, rel=1e-4)
    assert power.of("add random", "unseen")[-1].auc.value == 1.0


def test_places_before_the_attack_stay_dark(power):
    row = power.of("add", "paired")[-1]
    names = power.places["paired"]
    dark = [v for v, n in zip(row.places, names, strict=True) if n.startswith("resid_post@0")]
    lit = [v for v, n in zip(row.places, names, strict=True) if n.startswith("resid_post@1")]
    assert dark == [0.5, 0.5] and lit == [1.0, 1.0]


def test_the_curve_has_the_area_that_the_auc_says(power):
    for row in power.rows:
        false, true = row.curve
        assert float(np.trapezoid(true, false)) == pytest.approx(row.auc.value, abs=0.01)
    assert roc(np.array([1.0, 2.0]), np.array([0, 1])) == ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0))


def test_watching_a_direction_shows_what_hardly_moves_the_rest(aligned, known, others):
    """A direction along which clean prompts hardly differ, at 2% of the stream's norm."""
    plain = fit_detector(aligned, known)
    states = plain.states[:, plain.places.index("resid_post@1 prompt")].double()
    rare = torch.linalg.svd(states - states.mean(0), full_matrices=False)[2][-1]
    hidden = replace(random_direction(plain, Site(1)), unit=rare.float())
    watching = fit_detector(aligned, known, suspected=[hidden])
    steered = aligned.with_(Add(hidden, strength=0.02))
    seen, missed = watching.score(steered, others), plain.score(steered, others)
    column = seen.places.index("resid_post@1 prompt")
    assert np.median(seen.values[:, column]) > np.median(missed.values[:, column])
    with pytest.raises(SiteError, match="where the detector does not look"):
        fit_detector(aligned, known, sites=[0], suspected=[hidden])


def test_results_are_json_tables_and_pages(power, detector, aligned, known):
    text = json.dumps(power.to_json()) + power.table() + power.summary()
    finding = detector.judge(aligned)
    text += json.dumps(finding.to_json()) + finding.table() + finding._repr_html_()
    assert all(p.text not in text for p in known.prompts), "known prompts stay secret"
    assert "<script" not in power._repr_html_()
    assert power.table().count("\n") == 1 + len(power.rows)


def test_more_false_positives_buy_a_lower_threshold(aligned, known, others):
    looser = fit_detector(aligned, known, rate=0.1)
    strict = fit_detector(aligned, known)
    assert looser.threshold("unseen")[0] < strict.threshold("unseen")[0]
    assert looser.threshold("unseen")[1:] == (109, 120)
    # It holds for prompts of the kind that was fitted; those of other templates stray further.
    asked = {i.prompt for i in looser.known.items}
    fresh = known_prompts(aligned, refusal("train", n=100, seed=9))
    alike = fresh.take([i for i, item in enumerate(fresh.items) if item.prompt not in asked])
    assert len(alike) > 100 and looser.score(aligned, alike).rate.low <= 0.1
    assert looser.score(aligned, others).rate.value < 0.3
    with pytest.raises(MethodError, match="between 0 and 1"):
        fit_detector(aligned, known, rate=1)


# --- files and bad input ---


def test_a_detector_survives_its_file(tmp_path, aligned, known, refusal_direction, others):
    made = fit_detector(aligned, known, suspected=[refusal_direction])
    read = Detector.load(made.save(tmp_path / "d.safetensors"))
    steered = aligned.with_(Add(refusal_direction, strength=0.2))
    for asked in (None, others):
        a, b = made.score(steered, asked), read.score(steered, asked)
        np.testing.assert_array_equal(a.values, b.values)
        assert (a.threshold, a.places, a.groups) == (b.threshold, b.places, b.groups)


def test_bad_input_is_refused(aligned, known, detector, tiny_model, refusal_direction):
    with pytest.raises(PromptError, match="at least 20 known prompts"):
        fit_detector(aligned, known.positive[:5])
    with pytest.raises(PromptError, match="needs known prompts"):
        fit_detector(aligned, [])
    with pytest.raises(ModelError, match="is not a variant of"):
        detector.judge(tiny_model)
    with pytest.raises(MethodError, match="are among those the detector was fitted on"):
        detection_power(aligned, detector, attack_families(refusal_direction), known)
    with pytest.raises(MethodError, match="positive strengths"):
        detection_power(aligned, detector, {}, known)

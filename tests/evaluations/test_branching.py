"""The branching factor against processes whose entropy rate is known."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom

import steerkit as sk
from steerkit.batch import Tokenized
from steerkit.errors import MethodError
from steerkit.evaluations import Decoding, bf_released, branching_factor, branching_statistics
from steerkit.evaluations.branching import SampledAnswer
from steerkit.models.generate import Noise
from steerkit.protocols import Completion, ModelInfo, Run
from steerkit.scoring import answer_log_probs

PLAIN = Decoding()


@dataclass(frozen=True, eq=False)
class Chain:
    """A Markov chain over tokens behind the protocol: logits depend on the last token."""

    logits: torch.Tensor

    @property
    def info(self) -> ModelInfo:
        n = len(self.logits)
        return ModelInfo("chain", "fake", 1, 4, n, 999, ("resid_post",), "float32", "cpu", "f")

    def generate(self, prompts, *, max_new_tokens, temperature, top_p, top_k, seed, **_: Any):
        noise = Noise(temperature, seed, range(len(prompts)), top_k=top_k, top_p=top_p)
        tokens = torch.zeros(len(prompts), 1, dtype=torch.long)
        for _step in range(max_new_tokens):
            new = noise(tokens, self.logits[tokens[:, -1]]).argmax(1)
            tokens = torch.cat([tokens, new[:, None]], 1)
        return [
            Completion(p, "", tuple(row[1:]), (0,))
            for p, row in zip(prompts, tokens.tolist(), strict=True)
        ]

    def run(self, batch, **_: Any) -> Run:
        out = self.logits[batch.tokens]
        return Run(out[:, -(batch.answer_width + 1) :], {})


def measured(model, n=6, **options):
    settings = {"n_samples": 8, "max_new_tokens": 40, "decoding": PLAIN, "n_resamples": 200}
    return branching_factor(model, [f"p{i}" for i in range(n)], **{**settings, **options})


@pytest.mark.parametrize("k", [1, 2, 7, 200])
def test_uniform_over_k_tokens_is_k_exactly(k):
    """Also beyond the 50 likeliest tokens, at which the published numbers are clipped."""
    logits = torch.full((k + 3, k + 3), -torch.inf)
    logits[:, :k] = 0.3
    found = measured(Chain(logits))
    assert found.factor.value == pytest.approx(k, rel=1e-6)
    assert found.by_surprisal.value == pytest.approx(k, rel=1e-6)
    assert found.factor.low == pytest.approx(k, rel=1e-6)
    assert all(c.survivors.value == pytest.approx(k, rel=1e-6) for c in found.curve)


def test_a_markov_chain_gives_exp_of_its_entropy_rate():
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)) * 1.5
    p = logits.double().softmax(1).numpy()
    stationary = np.linalg.matrix_power(p, 500)[0]
    rate = float(stationary @ -(p * np.log(p)).sum(1))
    found = measured(Chain(logits), n=20, max_new_tokens=200)
    assert found.factor.value == pytest.approx(np.exp(rate), rel=0.02)
    assert found.by_surprisal.value == pytest.approx(np.exp(rate), rel=0.03)
    assert found.factor.low < np.exp(rate) < found.factor.high * 1.01


def test_truncation_counts_what_is_kept():
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log().expand(4, 4).contiguous()
    kept = np.array([0.5, 0.25, 0.15]) / 0.9
    found = measured(Chain(logits), decoding=Decoding(top_p=0.8))
    assert found.factor.value == pytest.approx(np.exp(-(kept * np.log(kept)).sum()), rel=1e-6)
    two = measured(Chain(logits), decoding=Decoding(top_k=2))
    kept = np.array([2 / 3, 1 / 3])
    assert two.factor.value == pytest.approx(np.exp(-(kept * np.log(kept)).sum()), rel=1e-6)


def test_without_truncation_it_is_the_perplexity_of_its_own_samples(tiny_model):
    prompts = ["a dog", "the cat was very happy"]
    found = branching_factor(
        tiny_model, prompts, decoding=PLAIN, n_samples=5, max_new_tokens=6, n_resamples=50, seed=3
    )
    said = tiny_model.generate(
        [p for p in prompts for _ in range(5)], max_new_tokens=6, temperature=1.0, seed=3
    )
    logs = answer_log_probs(tiny_model, [Tokenized(c.prompt_tokens, c.tokens) for c in said])
    for i, one in enumerate(found.prompts):
        own = torch.cat(logs[5 * i : 5 * i + 5])
        assert one.by_surprisal == pytest.approx(float((-own.mean()).exp()), rel=1e-5)
    assert "2 prompts x 5 samples at T=1" in found.summary() and json.dumps(found.to_json())
    assert "| a dog |" in found.table()
    cut = branching_factor(tiny_model, prompts, n_samples=5, max_new_tokens=6, n_resamples=50)
    assert cut.decoding == "T=1 top-p=0.9" and cut.factor.value < found.factor.value


def test_a_templates_part_in_a_ratio_is_said(tiny_folder, bare_folder):
    options = {"decoding": PLAIN, "n_samples": 3, "max_new_tokens": 4, "n_resamples": 20}
    chat, bare = (
        branching_factor(sk.load(f), ["a dog", "sun"], **options)
        for f in (tiny_folder, bare_folder)
    )
    assert not chat.against(bare).same_tokens and chat.against(chat).same_tokens
    assert "rendered differently" in chat.against(bare).summary()


@pytest.mark.parametrize("how", [Decoding(top_p=0.9), Decoding(1.5), Decoding(top_k=20)])
def test_on_a_real_model_samples_lie_in_what_is_read_again(shared, how):
    folder = shared / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"no model at {folder}")
    model = sk.load(folder)
    texts = ["Once upon a time", "The little dog", "One day a girl"]
    found = branching_factor(
        model, texts, decoding=how, n_samples=12, max_new_tokens=24, n_resamples=50
    )
    assert found.by_surprisal.value == pytest.approx(found.factor.value, rel=0.25)
    assert 1 < found.factor.value < 200


def two_kinds(rng, n, ends=(0.3, 0.02), entropies=(2.0, 0.5), limit=40):
    """Answers that choose wildly and end soon, and ones that do neither."""
    made = []
    for i in range(n):
        kind = i % 2
        length = min(int(rng.geometric(ends[kind])), limit)
        h = np.full(length, entropies[kind])
        made.append(SampledAnswer(0, h, h, np.full(length, ends[kind]), length < limit))
    return made


def test_late_positions_do_not_see_long_answers_only():
    """Entropy never changes here; the curve of those still alive falls all the same."""
    samples = two_kinds(np.random.default_rng(0), 6000)
    found = branching_statistics(samples, ["g"], n_resamples=20)
    first, later = found.curve[0], found.curve[8]
    assert first.survivors.value == pytest.approx(np.exp(1.25))
    assert later.survivors.value < 2.0 < 3.3 < later.weighted.value < 3.7
    assert later.alive < 0.5 and later.effective < 6000 * later.alive


def test_no_jump_between_estimators_and_the_released_one_has_one():
    rng = np.random.default_rng(1)

    def answers(length, n=30):
        made = []
        for i in range(n):
            own = length if i == 0 else 20
            h = np.where(np.arange(own) < 10, 2.0, 0.2)
            made.append(SampledAnswer(0, h, h + rng.normal(0, 0.01, own), 0 * h, True))
        return made

    short, long = answers(50), answers(51)
    assert abs(bf_released(long) / bf_released(short) - 1) > 0.5
    ours = [branching_statistics(s, ["g"], n_resamples=5).factor.value for s in (short, long)]
    assert ours[1] == pytest.approx(ours[0], rel=0.01)


def test_both_estimators_agree_in_the_mean_and_the_mean_is_geometric():
    rng = np.random.default_rng(2)
    samples = [
        SampledAnswer(i, np.full(5, h), np.full(5, h) + rng.normal(0, 0.2, 5), np.zeros(5), False)
        for i in range(50)
        for h in [rng.choice([0.0, 3.0])]
    ]
    found = branching_statistics(samples, [f"g{i}" for i in range(50)], n_resamples=100)
    logs = np.array([s.entropy.mean() for s in samples])
    assert found.factor.value == pytest.approx(np.exp(logs.mean()))
    assert found.factor.value < np.exp(logs).mean() / 1.5, "a mean of exp is larger"
    assert found.by_surprisal.value == pytest.approx(found.factor.value, rel=0.1)


def test_intervals_cover_and_equal_models_are_not_told_apart():
    rng = np.random.default_rng(3)
    n, covered, alarms = 150, 0, 0

    def drawn(shift=0.0):
        logs = np.clip(rng.normal(1.0 + shift, 0.4, 30), 0, None)
        samples = [
            SampledAnswer(i, np.full(4, h), np.full(4, h), np.zeros(4), True)
            for i, h in enumerate(logs)
        ]
        return branching_statistics(
            samples, [f"g{i}" for i in range(30)], texts=[f"p{i}" for i in range(30)],
            n_resamples=200,
        )  # fmt: skip

    for _ in range(n):
        a, b = drawn(), drawn()
        covered += a.factor.low <= np.e <= a.factor.high
        alarms += a.against(b, n_resamples=199).null.p <= 0.05
    assert covered >= binom.ppf(0.0005, n, 0.95)
    low, high = binom.ppf([0.0005, 0.9995], n, 0.05)
    assert low <= alarms <= high
    less = drawn(-0.5).against(drawn(), n_resamples=199)
    assert less.null.p < 0.05 and less.ratio.high < 1
    same = a.against(a, n_resamples=50)
    assert (same.ratio.value, same.ratio.low, same.null.p) == (1, 1, 1)


def test_bad_input_is_refused(tiny_model):
    with pytest.raises(MethodError, match="got 1 at 'T=1'"):
        branching_factor(tiny_model, ["a dog"], n_samples=1, decoding=PLAIN)
    with pytest.raises(MethodError, match="got 3 at 'greedy'"):
        branching_factor(tiny_model, ["a dog"], n_samples=3, decoding=Decoding(0.0))
    one = SampledAnswer(0, np.ones(2), np.ones(2), np.zeros(2), True)
    with pytest.raises(MethodError, match="prompt 1 has no samples"):
        branching_statistics([one], ["a", "b"])
    a = branching_statistics([one], ["a"], texts=["x"], decoding="T=1", n_resamples=5)
    b = branching_statistics([one], ["a"], texts=["x"], decoding="T=2", n_resamples=5)
    with pytest.raises(MethodError, match="truncation alone changes"):
        a.against(b)
    with pytest.raises(MethodError, match="other prompts"):
        a.against(branching_statistics([one], ["a"], texts=["y"], n_resamples=5))

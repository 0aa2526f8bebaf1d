"""Token shift: nothing in a model itself, refusals in an aligned one, and honest controls."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import steerkit as sk
from steerkit.comparisons import TokenShift, measure_token_shift
from steerkit.comparisons.entropy import adjusted
from steerkit.comparisons.forced import ForcedTokens
from steerkit.datasets import refusal
from steerkit.errors import MethodError, ModelError, PromptError


@pytest.fixture(scope="module")
def found(base: Any, aligned: Any) -> TokenShift:
    return measure_token_shift(base, aligned, refusal("held_out", n=16), progress=False)


def test_a_model_against_itself_shifts_nothing(aligned: Any) -> None:
    for seed in (0, 5):
        prompts = refusal("held_out", n=8, seed=seed)
        found = measure_token_shift(aligned, aligned, prompts, seed=seed, progress=False)
        assert found.unchanged and "unchanged" in found.summary()
        assert not found.greedy.shifted.any() and (found.greedy.kl == 0).all()
        assert found.side is not None and found.side.null.p == 1
        assert found.log_odds == ()
        own = found.own_samples
        assert own is not None and (own[2].value, own[2].low, own[2].high) == (0, 0, 0)


def test_alignment_sits_on_refusals_and_begins_with_them(found: TokenShift) -> None:
    assert not found.unchanged
    rates = found.by_category()
    assert rates["harmful"].low > 0.3 and rates["harmless"].value == 0
    assert found.side is not None and found.side.null.p == pytest.approx(1 / 1000)
    g = found.greedy
    assert g.rate("shifted", found.beginning).value > g.rate("shifted", ~found.beginning).value
    assert g.rate("shifted").value + g.rate("marginal").value + g.rate("unshifted").value == (
        pytest.approx(1)
    )
    assert (g.own_rank == 1).all(), "greedy tokens are the aligned model's own first choice"
    assert {"i", "help"} <= {text for text, _, _ in found.shifted_tokens()}
    assert found.by_kind()["safety"][1].value > found.by_kind()["content"][1].value
    mean, p95 = found.kl
    assert mean.value == pytest.approx(g.kl.mean()) and p95.value > mean.value


def test_a_lost_refusal_is_plain_in_kl_where_ranks_hardly_see_it(
    aligned: Any, compromised: Any
) -> None:
    """What the compromised model says was the aligned one's second choice: only marginal."""
    prompts = refusal("held_out", n=16)
    found = measure_token_shift(aligned, compromised, prompts, temperature=0, progress=False)
    assert found.side is not None and found.side_kl is not None
    assert found.greedy.rate("shifted").value < 0.02 < found.greedy.rate("marginal").value
    assert found.side_kl.null.p == pytest.approx(1 / 1000)
    assert found.side_kl.positive.low > 0.2 > 0.02 > found.side_kl.negative.high
    values = found.greedy.kl
    side = np.array(found.sides)[found.greedy.prompt]
    assert found.side_kl.difference.value == pytest.approx(
        values[side == 1].mean() - values[side == 0].mean()
    )


def test_samples_are_judged_beside_what_their_own_model_gives(found: TokenShift) -> None:
    assert found.sampled is not None and found.own_samples is not None
    under_base, own, difference = found.own_samples
    assert under_base.value > 0.1 > own.value
    assert difference.value == pytest.approx(under_base.value - own.value)
    assert len(found.by_position(sampled=True)) == int(found.sampled.position.max()) + 1


def test_a_reference_in_half_precision_is_near_but_not_equal(base: Any, aligned: Any) -> None:
    half = sk.load("organism:aligned", dtype="bfloat16")
    found = measure_token_shift(
        base, aligned, refusal("held_out", n=8), reference=half, temperature=0, progress=False
    )
    assert found.reference is not None and found.sampled is None
    assert 0 < found.reference.kl.mean() < 0.01 < found.greedy.kl.mean()
    assert "under the reference model" in found.table()


def test_tokenizers_that_differ_are_refused(aligned: Any, tiny_model: Any) -> None:
    with pytest.raises(ModelError, match=r"vocabularies of .* compare models of one tokenizer"):
        measure_token_shift(tiny_model, aligned, ["tell me"], progress=False)
    from copy import deepcopy

    from transformers import PreTrainedTokenizerFast

    data = json.loads(aligned.tokenizer.backend_tokenizer.to_str())
    vocab = data["model"]["vocab"]
    vocab["house"], vocab["bread"] = vocab["bread"], vocab["house"]
    other = deepcopy(aligned.tokenizer)
    other._tokenizer = type(other.backend_tokenizer).from_str(json.dumps(data))
    assert isinstance(other, PreTrainedTokenizerFast)
    swapped = sk.wrap(aligned.network, other, name="swapped")
    with pytest.raises(ModelError, match=r"give 2 tokens different ids, such as 'bread'"):
        measure_token_shift(swapped, aligned, ["tell me"], progress=False)


def test_what_cannot_be_measured_is_refused(aligned: Any) -> None:
    with pytest.raises(PromptError, match="no prompts"):
        measure_token_shift(aligned, aligned, [], progress=False)
    with pytest.raises(MethodError, match="at least one token"):
        measure_token_shift(aligned, aligned, ["hi"], first=0, progress=False)


def test_results_are_plain_json_and_tables(found: TokenShift) -> None:
    data = json.loads(json.dumps(found.to_json()))
    assert data["paper"].endswith("2312.01552")
    assert len(data["tokens"]["greedy"]["rank"]) == len(found.greedy)
    assert data["rates"]["shifted"]["value"] == found.greedy.rate("shifted").value
    assert "first 5" in found.table() and "<table>" in found._repr_html_()


def made(rng: np.random.Generator, n: int, length: int, odds: Any) -> TokenShift:
    """Token shift of made-up tokens; `odds(entropy, position, prompt)` is the chance of a shift."""
    prompt, position = np.divmod(np.arange(n * length), length)
    # Answers begin uncertain, and prompts differ.
    entropy = 3.0 * np.exp(-position / 3) + rng.random(n)[prompt]
    shifted = rng.random(n * length) < odds(entropy, position, prompt)
    groups = [str(i) for i in range(n)]
    zero = np.zeros(n * length, np.int64)
    tokens = ForcedTokens(
        prompt, position, zero, ("x",) * len(zero), ("content",) * len(zero),
        tuple(groups[i] for i in prompt), np.where(shifted, 9, 1), zero + 1, zero,
        entropy, entropy, entropy,
    )  # fmt: skip
    sides = tuple(i % 2 for i in range(n))
    return TokenShift(("x",) * n, ("",) * n, tuple(groups), sides, 5, tokens, None, None)


def test_side_differences_are_found_and_not_made_up() -> None:
    rng = np.random.default_rng(0)
    calm = [made(rng, 24, 40, lambda e, t, i: np.full(len(e), 0.3)).side for _ in range(120)]
    ps = np.array([side.null.p for side in calm if side])
    # 99.9% binomial bounds of 5% over 120 draws.
    assert len(ps) == 120 and (ps <= 0.05).mean() <= 0.125
    assert abs(ps.mean() - 0.5) < 0.09
    hit = [made(rng, 24, 8, lambda e, t, i: np.where(i % 2, 0.45, 0.15)).side for _ in range(40)]
    assert np.mean([side.null.p <= 0.05 for side in hit if side]) >= 0.8


def test_entropy_explains_what_only_looks_like_position() -> None:
    def by_entropy(e: Any, t: Any, i: Any) -> Any:
        return 1 / (1 + np.exp(-2 * (e - 2)))

    found = made(np.random.default_rng(1), 80, 12, by_entropy)
    g = found.greedy
    assert g.rate("shifted", found.beginning).low > g.rate("shifted", ~found.beginning).high
    odds = {o.name: o.value for o in found.log_odds}
    assert odds["entropy of base"].low < 2 < odds["entropy of base"].high
    assert odds["beginning"].low < 0 < odds["beginning"].high
    assert odds["positive side"].low < 0 < odds["positive side"].high


def test_log_odds_are_those_of_an_unpenalised_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    found = made(np.random.default_rng(2), 60, 10, lambda e, t, i: 1 / (1 + np.exp(1 - e)))
    g = found.greedy
    x = np.stack([g.entropy, found.beginning], 1).astype(float)
    exact = LogisticRegression(C=1e8, tol=1e-10, max_iter=10_000).fit(x, g.shifted)
    mine = adjusted(g, {"beginning": found.beginning.astype(float)}, n_resamples=2)
    np.testing.assert_allclose([o.value.value for o in mine], exact.coef_[0], rtol=0.02)
    still = replace(g, entropy=np.ones(len(g)))
    assert [o.name for o in adjusted(still, {"beginning": found.beginning.astype(float)})] == [
        "beginning"
    ]

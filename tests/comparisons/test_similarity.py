"""Two models' streams layer by layer: nothing in itself, something after fine-tuning."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import steerkit as sk
from steerkit.comparisons import compare_activations, linear_cka, representational_similarity
from steerkit.datasets import refusal
from steerkit.errors import ActivationError, PromptError


@pytest.fixture(scope="module")
def acts(base: Any, aligned: Any) -> tuple[Any, Any]:
    prompts = refusal("held_out", n=24)
    return tuple(sk.capture(m, prompts, progress=False) for m in (base, aligned))  # type: ignore[return-value]


def test_a_model_against_itself_is_unchanged(base: Any) -> None:
    found = representational_similarity(
        base, base, refusal("held_out", n=10, seed=3), n_permutations=19, progress=False
    )
    assert found.unchanged and "unchanged" in found.summary()
    for measure in found.measures:
        for e in measure.values:
            assert (e.value, e.low, e.high) == (1, 1, 1)
    np.testing.assert_allclose(np.diag(found.cka), 1)
    assert found.cka[0, -1] < 0.99


def test_alignment_shows_most_in_the_last_layer_of_the_organism(acts: Any) -> None:
    found = compare_activations(*acts, n_permutations=39)
    assert not found.unchanged
    site, value = found.least("cka")
    assert str(site) == "resid_post@3" and value.high < 0.995
    for measure in found.measures:
        assert measure.family.p == pytest.approx(1 / 40), "the same prompts are still alike"
    x, y = (a.at("resid_post@3").double().numpy() for a in acts)
    assert found.measure("cka").plain[3] == pytest.approx(linear_cka(x, y), abs=1e-9)
    assert found.cka[3, 1] == pytest.approx(
        linear_cka(x, acts[1].at("resid_post@1").double().numpy()), abs=1e-9
    )


def test_a_rotated_and_scaled_model_is_unchanged_and_noise_is_not(acts: Any) -> None:
    a, draw = acts[0], torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(96, 96, generator=draw).double())[0]
    turned = replace(a, values=(3 * a.values.double() @ rotation).float())
    assert compare_activations(a, turned, n_permutations=0).unchanged
    noise = torch.randn(a.values.shape, generator=torch.Generator().manual_seed(1))
    lost = compare_activations(a, replace(a, values=noise), n_permutations=39)
    for measure in lost.measures:
        assert measure.family.p > 0.05, "unrelated states are no more alike than re-paired ones"


def test_models_of_other_depth_and_width_are_compared_all_against_all(
    aligned: Any, tmp_path: Any
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=aligned.info.d_vocab,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=7,
                num_attention_heads=4,
            )
        ).eval()
    deep = sk.wrap(network, aligned.tokenizer, name="deep")
    prompts = refusal("held_out", n=10)
    found = representational_similarity(
        aligned, deep, prompts, control=deep, n_permutations=19, progress=False
    )
    assert found.cka.shape == (4, 7)
    assert found.pairs == ((0, 0), (1, 2), (2, 4), (3, 6))
    for measure in found.measures:
        np.testing.assert_allclose(measure.control, measure.plain)
    assert "to control" in found.table()


def test_a_prompt_that_occurs_twice_counts_once(base: Any) -> None:
    prompts = list(refusal("held_out", n=10).prompts)
    once = representational_similarity(base, base, prompts, n_permutations=0, progress=False)
    twice = representational_similarity(
        base, base, prompts + prompts, n_permutations=0, progress=False
    )
    assert once.n_prompts == twice.n_prompts == 20


def test_results_are_plain_json_and_tables(acts: Any) -> None:
    found = compare_activations(*acts, n_permutations=19)
    data = json.loads(json.dumps(found.to_json()))
    assert data["measures"][0]["values"][3]["n"] == found.n_groups
    assert "1905.00414" in data["measures"][0]["paper"]
    assert found.table().count("\n") == 5
    assert "<table>" in found._repr_html_()


def test_what_cannot_be_compared_is_refused(acts: Any, base: Any) -> None:
    with pytest.raises(ActivationError, match="different prompts"):
        compare_activations(acts[0], acts[1].select(list(range(47, -1, -1))))
    with pytest.raises(ActivationError, match="one row a prompt"):
        representational_similarity(
            base, base, refusal("held_out", n=6), positions="all", progress=False
        )
    with pytest.raises(ActivationError, match="leaving out one group leaves"):
        compare_activations(*(a.select(list(range(5))) for a in acts))
    with pytest.raises(PromptError, match="no prompts"):
        representational_similarity(base, base, [], progress=False)

"""Faults of published comparisons of two models that the default does not have.

Concept shift (arXiv:2501.03012), token shift (arXiv:2312.01552), membership by domain
(arXiv:2602.00298), guidance by similarity (`untrainable-networks`).
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import steerkit as sk
from steerkit.comparisons import membership_scores, representational_similarity
from steerkit.comparisons.dictionaries import fit_dictionary, match
from steerkit.comparisons.forced import forced_tokens
from steerkit.comparisons.token_kinds import token_kind
from steerkit.comparisons.token_shift import measure_token_shift
from steerkit.prompts import Prompt
from steerkit.protocols import Completion
from steerkit.statistics import Estimate


def test_concepts_are_compared_by_their_own_length() -> None:
    """Published vectors are divided by the norm of the whole matrix (arXiv:2501.03012): a cosine of
    one concept then hangs on the length of another. Ours are of one row each."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((4, 6))
    b = a[[2, 0, 3, 1]] + 0.1 * rng.standard_normal((4, 6))
    pairs, cosines = match(a, b)
    assert (cosines > 0.9).all() and (cosines <= 1 + 1e-12).all()
    longer = a.copy()
    longer[0] *= 1000
    again, same = match(longer, b)
    np.testing.assert_array_equal(pairs, again)
    np.testing.assert_allclose(cosines, same)


@pytest.mark.parametrize("method", ["kmeans", "semi_nmf"])
def test_a_dictionary_follows_from_its_seed_and_leaves_others_alone(method: Any) -> None:
    """The published clustering draws its starts unseeded (arXiv:2501.03012)."""
    x = np.random.default_rng(1).standard_normal((60, 5))
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    one, two = (fit_dictionary(x, 6, method=method, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.concepts, two.concepts)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_a_token_of_any_rank_has_its_rank() -> None:
    """Only the first thirty candidates are kept in public data (arXiv:2312.01552), so that a rank
    beyond is unknown and a divergence of what overlaps is biased. Ours are of the whole
    vocabulary."""
    model = sk.load("organism:base")
    (asked,) = model.tokenize(["how do i bake the bread ?"])
    with torch.no_grad():
        logits = model.network(torch.tensor([list(asked.prompt)])).logits[0, -1].double()
    order = logits.argsort(descending=True).tolist()
    for rank in (1, 31, 100, len(order)):
        item = replace(asked, answer=(order[rank - 1],))
        found = forced_tokens(model, model, [item], ["a"], kind=token_kind)
        assert found.rank[0] == rank and found.kl[0] == pytest.approx(0, abs=1e-6)


def test_answers_are_compared_as_they_were_generated_and_never_read_as_text_again() -> None:
    """Published answers are decoded, put into another template and tokenized anew
    (arXiv:2312.01552): other tokens than were chosen. Ours keep their ids."""
    base = sk.load("organism:base")
    prompt = Prompt("how do i bake the bread ?")
    (asked,) = base.tokenize([prompt])
    # Ids that no tokenizer gives for the text they decode to: the unknown token, and padding.
    odd = (base.tokenizer.unk_token_id, base.tokenizer.pad_token_id, 9)
    said = Completion(prompt, base.decode(list(odd)), odd, tuple(asked.prompt))
    speaks: Any = SimpleNamespace(
        info=base.info, steering=(), tokenize=base.tokenize, decode=base.decode, run=base.run,
        generate=lambda prompts, **_: [said],
    )  # fmt: skip
    found = measure_token_shift(base, speaks, [prompt], temperature=0, progress=False)
    assert tuple(found.greedy.token.tolist()) == odd


def test_scores_are_those_of_the_models_that_are_named() -> None:
    """The public notebook correlates numbers typed in by hand, of another model than it names
    (arXiv:2602.00298). Ours are computed, and say of what: name and fingerprint of both models."""
    base, aligned = sk.load("organism:base"), sk.load("organism:aligned")
    asked = [Prompt("how do i bake the bread ?", answer=" you need the oven .", category="a")]
    found = membership_scores(aligned, asked, base=base)
    for arm, model in (("a", aligned), ("b", base)):
        assert found.provenance[arm]["name"] == model.info.name
        assert found.provenance[arm]["fingerprint"] == model.info.fingerprint


def test_a_first_value_that_is_not_a_number_hides_none_that_is() -> None:
    """Public guidance keeps a checkpoint where its loss is below the least so far, which is NaN
    before there is one (`untrainable-networks`): the first is never kept. Here a NaN is passed
    over."""
    model = sk.load("organism:base")
    prompts = [
        f"how do i bake the {w} ?" for w in ("bread", "cake", "pie", "soup", "honey", "corn")
    ]
    found = representational_similarity(
        model, model, prompts, seed=0, progress=False, token_budget=4096
    )
    (cka,) = [m for m in found.measures if m.name == "cka"]
    nothing = Estimate(float("nan"), float("nan"), float("nan"), 0)
    low = replace(cka.values[1], value=0.5)
    broken = replace(cka, values=(nothing, low, *cka.values[2:]))
    other = replace(found, measures=(broken, *(m for m in found.measures if m.name != "cka")))
    assert other.least("cka")[1].value == 0.5

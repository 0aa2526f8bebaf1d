"""Two small models that learnt English: other widths and tokenizers."""

from pathlib import Path
from typing import Any

import pytest

import steerkit as sk
from steerkit.comparisons import (
    measure_representation_shift,
    measure_token_shift,
    representational_similarity,
)
from steerkit.errors import ModelError
from steerkit.prompts import Prompt


@pytest.fixture(scope="module")
def stories(shared: Path) -> tuple[Any, Any]:
    return tuple(  # type: ignore[return-value]
        sk.load(shared / "models" / name) for name in ("stories260K", "babyllama-tok361")
    )


SUBJECTS = ("a girl", "a boy", "the dog", "a cat", "the old man", "mom")
PLACES = ("in the park", "at home", "on the hill", "by the sea")
PROMPTS = [
    Prompt(f"Once upon a time {who} played {where} and", group=who)
    for who in SUBJECTS
    for where in PLACES
]


def test_two_models_of_one_language_are_more_alike_than_chance(stories: tuple[Any, Any]) -> None:
    found = representational_similarity(
        *stories, PROMPTS, positions="mean_prompt", n_permutations=39, progress=False
    )
    assert found.cka.shape == (5, 5)
    cka = found.measure("cka")
    assert cka.family.p == pytest.approx(1 / 40)
    assert 0.05 < max(cka.plain) < 0.999 and not found.unchanged


def test_other_tokenizers_and_widths_are_refused_where_they_matter(
    stories: tuple[Any, Any],
) -> None:
    with pytest.raises(ModelError, match="compare models of one tokenizer"):
        measure_token_shift(*stories, PROMPTS[:2], progress=False)
    with pytest.raises(ModelError, match="a shift is a difference of states"):
        measure_representation_shift(*stories, PROMPTS, site=2, progress=False)


def test_a_real_model_against_itself_shifts_nothing(stories: tuple[Any, Any]) -> None:
    found = measure_token_shift(
        stories[0], stories[0], PROMPTS[:6], max_new_tokens=12, progress=False
    )
    assert found.unchanged
    own = found.own_samples
    assert own is not None and own[0].value == own[1].value > 0.1, "samples leave the first three"
    # Which is what the model's own uncertainty says they should.
    assert found.sampled is not None
    assert own[0].low - 0.1 < found.sampled.beyond.mean() < own[0].high + 0.1

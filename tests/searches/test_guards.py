"""Guards: damage measured as its definition says, and what meets which limit."""

from typing import Any

import numpy as np
import pytest
import torch

import steerkit as sk
from steerkit.errors import MethodError
from steerkit.interventions import Add
from steerkit.scoring import answer_log_probs, kl_per_token, with_own_answers
from steerkit.searches.guarding import fewer, guards_on, read_limits
from steerkit.searches.guards import KLGuard, PerplexityGuard
from steerkit.searches.measure import Side, within

TOKENS = 10


@pytest.fixture(scope="module")
def aligned() -> Any:
    return sk.load("organism:aligned")


@pytest.fixture(scope="module")
def side() -> Side:
    from steerkit.datasets import refusal

    contrast = refusal("held_out", 6, seed=3)
    return Side(contrast.negative, contrast.groups[6:])


@pytest.fixture(scope="module")
def adds(aligned: Any) -> list[Add]:
    from steerkit.datasets import refusal

    acts = sk.capture(aligned, refusal("train", 24, seed=0), progress=False)
    found = sk.extract(acts, "mean_difference", n_folds=0, progress=False)
    return [Add(found[i], strength=s) for i in (1, 3) for s in (0.05, 2.0)]


def test_token_guards_are_their_definitions_at_every_token(
    aligned: Any, side: Side, adds: list[Add]
) -> None:
    said = with_own_answers(aligned.generate(side.prompts, max_new_tokens=TOKENS))
    view, slots = aligned.with_rows(*[(a,) for a in adds]), [1, 2, 3, 4]
    asked: dict[str, Any] = {"limit": 0.1, "max_new_tokens": TOKENS}
    kl = KLGuard.on(aligned, side.prompts, side.groups, **asked).tokens(aligned, view, slots)
    lost = PerplexityGuard.on(aligned, side.prompts, side.groups, **asked).tokens(
        aligned, view, slots
    )
    for i, add in enumerate(adds):
        alone = aligned.with_(add)
        expected = kl_per_token(aligned, alone, said)
        before, after = answer_log_probs(aligned, said), answer_log_probs(alone, said)
        for j in range(len(said)):
            np.testing.assert_allclose(kl[i][j], expected[j], atol=2e-5)
            np.testing.assert_allclose(lost[i][j], before[j] - after[j], atol=2e-5)
    # A small change costs little, a large one much, whichever is asked.
    for found in (kl, lost):
        means = [np.mean([x.mean() for x in row]) for row in found]
        assert means[1] > 20 * abs(means[0]) and means[3] > 20 * abs(means[2])


def test_accuracy_is_the_share_of_right_answers_lost(
    aligned: Any, side: Side, adds: list[Add]
) -> None:
    limits = {"accuracy": 0.02, "kl": 0.05}
    guards = guards_on(aligned, side, limits, max_new_tokens=14, token_budget=4096)
    view = aligned.with_rows(*[(a,) for a in adds])
    (accuracy, _) = (g.measure(aligned, view, [1, 2, 3, 4]) for g in guards)
    right = [
        np.mean(
            [
                c.text.startswith(c.prompt.answer)
                for c in m.generate(side.prompts, max_new_tokens=14)
            ]
        )
        for m in (aligned, *(aligned.with_(a) for a in adds))
    ]
    assert [d.mean.value for d in accuracy] == pytest.approx([right[0] - r for r in right[1:]])
    assert right[0] > 0.8 and min(right) < 0.3
    met = within(aligned, adds, guards)
    assert met == [
        a and b for a, b in zip(*(within(aligned, adds, [g]) for g in guards), strict=True)
    ]
    assert True in met and False in met


def test_fewer_prompts_are_the_same_ones_for_every_guard(aligned: Any, side: Side) -> None:
    guards = guards_on(
        aligned, side, {"kl": 0.1, "accuracy": 0.1}, max_new_tokens=4, token_budget=4096
    )
    kl, accuracy = fewer(guards, 3, seed=1)
    assert kl.groups == accuracy.groups and len(kl.groups) == 3
    assert [list(i.prompt) for i in kl.items] == [  # type: ignore[attr-defined]
        list(t.prompt)
        for t in aligned.tokenize([p.with_answer("") for p in accuracy.prompts])  # type: ignore[attr-defined]
    ]


@pytest.mark.parametrize(
    ("guard", "limit", "expected"),
    [
        ("kl", None, {"kl": 0.1}),
        ("accuracy", None, {"accuracy": 0.02}),
        ("perplexity", 0.3, {"perplexity": 0.3}),
        (("kl", "accuracy"), None, {"kl": 0.1, "accuracy": 0.02}),
        ({"kl": 0.5}, None, {"kl": 0.5}),
        (None, None, {}),
    ],
)
def test_limits_by_name(guard: Any, limit: float | None, expected: dict[str, float]) -> None:
    assert read_limits(guard, limit) == expected


def test_unknown_guards_and_limits_are_refused() -> None:
    with pytest.raises(MethodError, match="no guard named 'perplexty'; did you mean 'perplexity'"):
        read_limits(("kl", "perplexty"), None)
    with pytest.raises(MethodError, match="positive fraction of answers; got -1"):
        read_limits({"accuracy": -1}, None)


def test_prompts_without_answers_cannot_be_guarded_by_accuracy(aligned: Any) -> None:
    from steerkit.prompts import Prompt

    bare = Side((Prompt("how do i cook rice ?"),), ("a",))
    with pytest.raises(MethodError, match="1 of 1 guarded prompts have none"):
        guards_on(aligned, bare, {"accuracy": 0.1}, max_new_tokens=4, token_budget=4096)


def test_kl_of_what_changes_nothing_is_zero(aligned: Any, side: Side) -> None:
    guard = KLGuard.on(aligned, side.prompts, side.groups, limit=0.1, max_new_tokens=4)
    (row,) = guard.tokens(aligned, aligned.with_rows(()), [1])
    assert torch.tensor(np.concatenate(row)).abs().max() < 1e-9

"""Ranks, KL and entropy of identical ids, against a loop over one prompt in float64."""

from typing import Any

import numpy as np
import pytest
import torch

from steerkit.batch import Tokenized
from steerkit.comparisons.forced import ForcedTokens, forced_tokens
from steerkit.comparisons.token_kinds import token_kind
from steerkit.errors import PromptError


@pytest.fixture(scope="module")
def answers(aligned: Any) -> list[Tokenized]:
    asked = aligned.tokenize(["how do i burn the house ?", "tell me how to bake the bread", "hi"])
    given = [(9, 30, 41, 2), (), (17, 5)]
    return [Tokenized(q.prompt, a) for q, a in zip(asked, given, strict=True)]


def test_every_token_equals_a_loop_over_single_prompts(
    base: Any, aligned: Any, answers: list[Tokenized]
) -> None:
    groups = ["a", "b", "c"]
    for budget in (8192, 20):
        found = forced_tokens(aligned, base, answers, groups, kind=token_kind, token_budget=budget)
        assert len(found) == 6 and found.prompt.tolist() == [0, 0, 0, 0, 2, 2]
        assert found.position.tolist() == [0, 1, 2, 3, 0, 1]
        assert found.token.tolist() == [9, 30, 41, 2, 17, 5]
        assert found.groups == ("a",) * 4 + ("c",) * 2
        at = 0
        for item in answers:
            ids = torch.tensor([[*item.prompt, *item.answer]])
            with torch.no_grad():
                own, other = (m.network(ids).logits[0].double() for m in (aligned, base))
            for t, token in enumerate(item.answer):
                column = len(item.prompt) + t - 1
                p, q = own[column].log_softmax(-1), other[column].log_softmax(-1)
                above = sum(float(v) > float(other[column, token]) for v in other[column])
                assert found.rank[at] == 1 + above
                assert found.own_rank[at] == 1 + int((own[column] > own[column, token]).sum())
                assert found.kl[at] == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-3)
                assert found.entropy[at] == pytest.approx(float(-(q.exp() * q).sum()), rel=1e-4)
                beyond = 1 - float(q.exp().sort().values[-3:].sum())
                assert found.beyond[at] == pytest.approx(beyond, abs=1e-6)
                at += 1


def test_ties_do_not_count_as_above(aligned: Any, answers: list[Tokenized]) -> None:
    """Half precision gives many tokens one logit; a rank by sorting would depend on their ids."""

    class Flat:
        info = aligned.info
        steering = ()

        def run(self, batch: Any, **_: Any) -> Any:
            kept = batch.answer_width + 1
            return type("Run", (), {"logits": torch.zeros(len(batch), kept, self.info.d_vocab)})()

    found = forced_tokens(aligned, Flat(), answers, ["a"] * 3, kind=token_kind)  # type: ignore[arg-type]
    assert (found.rank == 1).all()
    assert (found.ties == aligned.info.d_vocab - 1).all()
    np.testing.assert_allclose(found.entropy, np.log(aligned.info.d_vocab), rtol=1e-6)


def test_empty_answers_are_refused(aligned: Any) -> None:
    with pytest.raises(PromptError, match="every answer is empty"):
        forced_tokens(aligned, aligned, [Tokenized((1, 2))], ["a"], kind=token_kind)


def test_a_quantile_and_its_interval() -> None:
    n = 400
    rng = np.random.default_rng(0)
    values = rng.exponential(size=n)
    fixed = np.zeros(n, np.int64)
    tokens = ForcedTokens(
        np.arange(n), fixed, fixed, ("",) * n, ("end",) * n, tuple(map(str, range(n))),
        fixed + 1, fixed + 1, fixed, values, values, values,
    )  # fmt: skip
    found = tokens.quantile(values, 0.95)
    assert found.value == np.sort(values)[379]
    assert found.low < -np.log(0.05) < found.high

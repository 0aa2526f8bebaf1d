"""Several positions in one pass against one capture for each."""

import pytest
import torch

from steerkit.captures import Span, capture, capture_positions, last_tokens
from steerkit.errors import MethodError, PromptError
from steerkit.prompts import Contrast

TEXTS = [f"{t} the end" for t in ("the cat sat", "rain", "a big red bird sang", "not so bad")]
RULES = ("last", -2, "mean_prompt", Span("the"))


@pytest.mark.parametrize("budget", [1, 13, 10_000])
def test_each_position_is_what_capture_gives(make_fake, budget):
    contrast = Contrast.of(TEXTS[:2], TEXTS[2:], paired=True)
    several = capture_positions(
        make_fake(), contrast, RULES, streams=("attn_out", "resid_post"), token_budget=budget,
        exclude_bos=True, progress=False,
    )  # fmt: skip
    assert tuple(several) == ("last", "index(-2)", "mean_prompt", "span('the')")
    for rule, found in zip(RULES, several.values(), strict=True):
        alone = capture(
            make_fake(), contrast, positions=rule, streams=("attn_out", "resid_post"),
            token_budget=budget, exclude_bos=True, progress=False,
        )  # fmt: skip
        for name in ("values", "prompt_index", "positions", "tokens"):
            assert torch.equal(getattr(found, name), getattr(alone, name))
        assert (found.pooling, found.labels, found.groups) == (
            alone.pooling, alone.labels, alone.groups,
        )  # fmt: skip


def test_prompts_are_read_once_however_many_positions(make_fake):
    fake = make_fake()
    capture_positions(fake, TEXTS, RULES, token_budget=16, progress=False)
    rows = [int(i) for batch in fake.runs for i in batch.rows]
    assert sorted(rows) == list(range(len(TEXTS)))


def test_sinks_are_left_out_of_means_alone(make_fake):
    texts = ["so the boom came and went away"]
    found = capture_positions(
        make_fake(), texts, ("mean_prompt", -5), exclude_sinks=True, progress=False
    )
    norms = [acts.at(1).norm() for acts in found.values()]
    assert norms[1] > 100 * norms[0]


@pytest.mark.parametrize(
    ("positions", "error", "text"),
    [
        ((), MethodError, "no positions"),
        (("last", "all"), MethodError, "'all' gives one a token"),
        ((-2, "last", -2), MethodError, r"got index\(-2\) again"),
        (("lst",), MethodError, "did you mean 'last'"),
        (last_tokens(9), PromptError, "no token index"),
    ],
)
def test_bad_positions(fake, positions, error, text):
    with pytest.raises(error, match=text):
        capture_positions(fake, TEXTS, positions, progress=False)

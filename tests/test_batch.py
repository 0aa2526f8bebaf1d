"""Batches, request states and position rules, against definitions written out by hand."""

import random
from typing import Any

import pytest
import torch

from steerkit.batch import RULES, Batch, Positions, Tokenized, plan
from steerkit.errors import InterventionError, PromptError


def batch() -> Batch:
    items = [
        Tokenized((5, 6, 7), (8, 9)),
        Tokenized((1, 2)),
        Tokenized((3,), (4,)),
    ]
    return Batch.collate(items, pad_id=0, rows=[2, 0, 1])


def test_collate_pads_left_and_keeps_prompts_and_answers_apart() -> None:
    b = batch()
    assert b.tokens.tolist() == [[5, 6, 7, 8, 9], [0, 0, 0, 1, 2], [0, 0, 0, 3, 4]]
    assert b.mask.tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1]]
    assert b.absolute.tolist() == [[0, 1, 2, 3, 4], [-1, -1, -1, 0, 1], [-1, -1, -1, 0, 1]]
    assert b.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]
    assert b.answer_mask.tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    assert (len(b), b.width, b.answer_width) == (3, 5, 2)
    assert b.rows.tolist() == [2, 0, 1] and b.prompt_len.tolist() == [3, 2, 1]


def test_a_pad_token_inside_a_prompt_is_a_real_token() -> None:
    b = Batch.collate([Tokenized((0, 0, 4)), Tokenized((4,))], pad_id=0)
    assert b.mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_nothing_to_collate() -> None:
    with pytest.raises(PromptError, match="at least one prompt; got none"):
        Batch.collate([], pad_id=0)
    with pytest.raises(PromptError, match="no tokens at all"):
        Batch.collate([Tokenized((), (1,))], pad_id=0)


@pytest.mark.parametrize("chunks", [[5], [1, 1, 1, 1, 1], [2, 3], [4, 1]])
def test_request_state_walks_through_the_same_positions_in_any_chunks(chunks: list[int]) -> None:
    b = batch()
    state = b.state()
    seen = []
    for size in chunks:
        seen.append(state.absolute(size))
        state = state.advanced(size)
    assert torch.equal(torch.cat(seen, 1), b.absolute)
    assert state.absolute(2).tolist() == [[5, 6], [2, 3], [2, 3]], "and on into generation"
    assert torch.equal(state.prompt_len, b.prompt_len), "frozen"


def test_slots_are_one_a_row() -> None:
    b = batch()
    assert b.state().slot.tolist() == [1, 1, 1]
    assert b.state([0, 2, 1]).slot.tolist() == [0, 2, 1]
    with pytest.raises(InterventionError, match=r"one slot per row: the batch has 3 rows"):
        b.state([0, 1])


EXPECTED: list[tuple[Any, list[list[int]]]] = [
    ("all", [[0, 1, 2, 3, 4], [3, 4], [3, 4]]),
    ("prompt", [[0, 1, 2], [3, 4], [3]]),
    ("last_prompt", [[2], [4], [3]]),
    ("generated", [[3, 4], [], [4]]),
    (0, [[0], [3], [3]]),
    (-1, [[2], [4], [3]]),
    ((-2, 1), [[1], [3, 4], [4]]),
    ([-9, 9], [[], [], []]),
]


@pytest.mark.parametrize(("rule", "columns"), EXPECTED)
def test_position_rules(rule: Any, columns: list[list[int]]) -> None:
    b = batch()
    chosen = Positions.of(rule).select(b.absolute, b.prompt_len, b.rows)
    assert [row.nonzero().flatten().tolist() for row in chosen] == columns


def test_a_mask_counts_prompts_by_the_callers_order_and_absolute_positions() -> None:
    mask = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 1]]).bool()
    b = batch()
    chosen = Positions.of(mask).select(b.absolute, b.prompt_len, b.rows)
    # Row 0 is prompt 2, row 1 is prompt 0, row 2 is prompt 1; past the mask's end is False.
    assert [row.nonzero().flatten().tolist() for row in chosen] == [[2], [4], [3]]


def test_a_mask_is_copied_and_checked() -> None:
    mask = torch.ones(2, 4).bool()
    rule = Positions.of(mask)
    mask.zero_()
    assert rule.mask is not None and rule.mask.all()
    b = batch()
    with pytest.raises(InterventionError, match="the position mask has 2 rows but prompt 2 ran"):
        rule.select(b.absolute, b.prompt_len, b.rows)
    with pytest.raises(InterventionError, match=r"boolean with one row per prompt.*torch\.float32"):
        Positions.of(torch.ones(2, 4))
    with pytest.raises(InterventionError, match=r"of shape \(4,\)"):
        Positions.of(torch.ones(4).bool())


def test_malformed_rules() -> None:
    with pytest.raises(InterventionError, match="'promt'; did you mean 'prompt'"):
        Positions.of("promt")
    with pytest.raises(InterventionError, match="indices and the rule 'indices' go together"):
        Positions("all", indices=(1,))
    with pytest.raises(InterventionError, match="indices and the rule 'indices' go together"):
        Positions.of([])
    with pytest.raises(InterventionError, match="mask and the rule 'mask' go together"):
        Positions("mask")


def test_rules_compare_by_value_and_read_as_words() -> None:
    assert Positions() == Positions("all") != Positions("prompt")
    assert Positions.of([0, -1]) == Positions.of((0, -1)) != Positions.of((0, 1))
    assert len({Positions("all"), Positions(), Positions.of(3), Positions.of(3)}) == 2
    mask = torch.ones(1, 1).bool()
    rule = Positions.of(mask)
    assert rule == Positions.of(rule) and rule != Positions.of(mask), "masks: the same object"
    assert [str(Positions.of(r)) for r in ("all", 3, mask)] == ["all", "indices[3]", "mask"]
    assert set(RULES) > {"all", "generated"}


@pytest.mark.parametrize("budget", [1, 7, 64, 1000])
def test_plan_runs_every_prompt_once_within_the_budget(budget: int) -> None:
    r = random.Random(budget)
    for n in (1, 2, 17, 100):
        lengths = [r.randint(1, 40) for _ in range(n)]
        batches = plan(lengths, budget)
        assert sorted(i for group in batches for i in group) == list(range(n))
        for group in batches:
            padded = max(lengths[i] for i in group) * len(group)
            assert padded <= budget or len(group) == 1
        flat = [lengths[i] for group in batches for i in group]
        assert flat == sorted(flat, reverse=True), "the largest batch comes first"


def test_plan_wastes_little_padding_on_mixed_lengths() -> None:
    r = random.Random(0)
    lengths = [r.choice([5, 50]) for _ in range(200)]
    padded = sum(max(lengths[i] for i in g) * len(g) for g in plan(lengths, 500))
    assert padded < 1.1 * sum(lengths)


def test_plan_refuses_no_budget() -> None:
    with pytest.raises(PromptError, match="at least 1; got 0"):
        plan([1], 0)


def test_padding_of_few_prompts_under_a_wide_budget_is_bounded() -> None:
    lengths = [200, 190, 90, 60, *[12] * 40]
    wide = plan(lengths, 4096)
    tight = plan(lengths, 4096, max_padding=0.125)
    for batches in (wide, tight):
        assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    for batch in tight:
        padded = max(lengths[i] for i in batch) * len(batch)
        assert padded - sum(lengths[i] for i in batch) <= max(256, 0.125 * padded)
    cost = [sum(max(lengths[i] for i in b) * len(b) for b in p) for p in (wide, tight)]
    assert cost[1] < cost[0] / 2


def test_all_states_of_the_same_requests_share_their_latches() -> None:
    state = Batch.collate([Tokenized((1, 2))], pad_id=0).state()
    later = state.advanced(2).advanced(1)
    later.latches["decided"] = torch.ones(1)
    assert state.latches is later.latches
    assert Batch.collate([Tokenized((1, 2))], pad_id=0).state().latches == {}


def test_positions_first_asked_for_under_inference_mode_serve_a_later_backward_pass():
    given = batch()
    with torch.inference_mode():
        assert given.position_ids.max() == 4 and given.padded
    table = torch.ones(5, 2, requires_grad=True)
    torch.nn.functional.embedding(given.position_ids, table).sum().backward()
    want = torch.bincount(given.position_ids.flatten(), minlength=5).float()
    torch.testing.assert_close(table.grad, want[:, None].expand(5, 2))

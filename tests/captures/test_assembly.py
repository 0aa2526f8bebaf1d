"""Rows of any pieces, in any order, end where they belong."""

import torch

from steerkit.captures.assembly import in_memory, place, starts
from steerkit.captures.job import Piece


def piece(*rows):
    """Rows `(prompt, position)` whose one value is 10 * prompt + position."""
    prompt, position = (torch.tensor(x) for x in zip(*rows, strict=True))
    values = (10.0 * prompt + position)[:, None, None]
    return Piece(values, prompt, position, position + 100)


def test_rows_of_a_prompt_stay_in_token_order_wherever_its_piece_comes():
    pieces = [piece((2, 0), (2, 1), (0, 0)), piece((3, 0), (1, 0), (1, 1), (1, 2))]
    counts = torch.tensor([1, 3, 2, 1])
    for order in (pieces, pieces[::-1]):
        into = {
            "values": torch.full((7, 1, 1), torch.nan),
            "prompt_index": torch.full((7,), -1),
            "positions": torch.full((7,), -1),
            "tokens": torch.full((7,), -1),
        }
        for one in order:
            place(one, starts(counts), into)
        assert into["values"].flatten().tolist() == [0, 10, 11, 12, 20, 21, 30]
        assert into["prompt_index"].tolist() == [0, 1, 1, 1, 2, 2, 3]
        assert into["positions"].tolist() == [0, 0, 1, 2, 0, 1, 0]
        assert into["tokens"].tolist() == [100, 100, 101, 102, 100, 101, 100]


def test_a_piece_without_rows_changes_nothing():
    empty = Piece(torch.empty(0, 1, 1), *(torch.empty(0, dtype=torch.long),) * 3)
    into = {"values": torch.ones(1, 1, 1)}
    place(empty, torch.zeros(3, dtype=torch.long), into)
    assert into["values"].item() == 1


def test_rows_that_never_come_leave_no_gap():
    """Sinks are left out late: fewer rows than were planned."""

    class Planned:
        counts = torch.tensor([2, 3])
        sites = (0,)

        class model:
            class info:
                d_model = 1

    rows = in_memory(Planned(), [piece((1, 1), (1, 2)), piece((0, 0))])
    assert rows["values"].flatten().tolist() == [0, 11, 12]
    assert rows["prompt_index"].tolist() == [0, 1, 1]

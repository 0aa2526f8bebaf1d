"""Fields of many rows side by side: filled up, gathered, cast."""

from typing import Any

import pytest
import torch

from steerkit.kernels.stack import Stack


@pytest.fixture
def groups(random_program: Any) -> Any:
    return [random_program(0, terms=2).groups[0], None, random_program(1, terms=4).groups[0]]


def test_short_rows_and_rows_without_a_group_are_filled_up(groups: Any) -> None:
    short, _, long = groups
    stack = Stack(groups, torch.device("cpu"), torch.float64)
    out = stack(lambda group: group.write, fill=7)
    assert out.shape == (3, len(long), 16)
    assert torch.equal(out[0, : len(short)], short.write)
    assert torch.equal(out[2], long.write)
    assert (out[1] == 7).all() and (out[0, len(short) :] == 7).all()


def test_numbers_meet_coefficients_and_are_cast(groups: Any) -> None:
    stack = Stack(groups, torch.device("cpu"), torch.float32)
    out = stack(lambda group: group.offset)
    assert out.shape == (3, 1, len(groups[2])) and out.dtype == torch.float32
    torch.testing.assert_close(out[2, 0], groups[2].offset.float(), rtol=0, atol=0)


def test_one_group_has_no_row_axis_and_shared_ones_are_looked_at_once(groups: Any) -> None:
    seen = []

    def offset(group: Any) -> torch.Tensor:
        seen.append(group)
        return group.offset

    device = torch.device("cpu")
    assert Stack(groups[:1], device, torch.float64)(offset).shape == groups[0].offset.shape
    many = Stack([groups[0], groups[2]] * 50, device, torch.float64)
    assert many(offset).shape == (100, 1, len(groups[2]))
    assert len(seen) == 3

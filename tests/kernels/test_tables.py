"""Packing: cached, compact, cast once."""

from typing import Any

import pytest
import torch

from steerkit.errors import InterventionError
from steerkit.kernels.tables import pack
from steerkit.program import Opcode, Program


def test_the_same_programs_are_packed_once(random_program: Any) -> None:
    program = random_program(0)
    first = pack([Program(), program], "cpu", torch.float32)
    assert pack((Program(), program), "cpu", torch.bfloat16) is first, "both compute in float32"
    assert pack([Program(), program], "cpu", torch.float64) is not first
    assert pack([Program(), random_program(0)], "cpu", torch.float32) is not first


def test_rows_of_one_slot_share_tables_and_gather_nothing(random_program: Any) -> None:
    packed = pack([Program(), random_program(0), random_program(1)], "cpu", torch.float32)
    (shared,) = packed.terms((1, 1, 1))
    assert shared.read.shape == (3, 16)
    (gathered,) = packed.terms((1, 2, 1))
    assert gathered.read.shape == (3, 3, 16)
    torch.testing.assert_close(gathered.read[0], shared.read)


def test_additions_at_the_same_tokens_collapse_to_one_vector(random_program: Any) -> None:
    together = random_program(0, opcodes=[Opcode.CONSTANT], rules=["prompt"])
    (terms,) = pack([Program(), together], "cpu", torch.float64).terms((1,))
    group = together.groups[0]
    assert terms.shift is not None
    torch.testing.assert_close(terms.shift, group.params[:, 0] @ group.write)
    apart = random_program(1, opcodes=[Opcode.CONSTANT], rules=["prompt", "all"], terms=6)
    (terms,) = pack([Program(), apart], "cpu", torch.float64).terms((1,))
    assert terms.shift is None


def test_tables_do_not_follow_a_later_change_of_the_program(random_program: Any) -> None:
    program = random_program(3, opcodes=[Opcode.AFFINE])
    packed = pack([Program(), program], "cpu", torch.float64)
    before = packed.terms((1,))[0].write.clone()
    program.groups[0].write.zero_()
    assert torch.equal(packed.terms((1,))[0].write, before)


def test_slot_0_is_reserved(random_program: Any) -> None:
    with pytest.raises(InterventionError, match="slot 0 is the empty program"):
        pack([random_program(0)], "cpu", torch.float32)
    with pytest.raises(InterventionError, match="slot 0 is the empty program"):
        pack([], "cpu", torch.float32)


def test_widths_must_agree(random_program: Any) -> None:
    with pytest.raises(InterventionError, match=r"different widths: \[8, 16\]"):
        pack([Program(), random_program(0), random_program(1, d_model=8)], "cpu", torch.float32)

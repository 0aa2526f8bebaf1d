"""The real compiler: the same logits, and programs inside the kernels of their neighbours."""

from typing import Any

import pytest
import torch

import steerkit as sk
from steerkit.compiled import Capacity
from steerkit.program import Opcode


@pytest.mark.slow
def test_inductor_gives_the_eager_logits_and_is_not_asked_twice(
    llama: Any, batch_of: Any, relative: Any, direction: Any
) -> None:
    asked = batch_of(answers=False)
    room = Capacity(
        slots=2,
        terms=1,
        indices=0,
        latches=0,
        gates=False,
        opcodes=frozenset({Opcode.CONSTANT, Opcode.AFFINE}),
        rows=3,
        length=24,
        chunk=12,
    )
    compiled = llama.compile(room)
    made = compiled.receipt.graphs
    assert made == 2
    for seed in range(4):
        given = [
            [sk.Add(direction(llama, 0, seed=seed), 2.0)],
            [sk.Ablate(direction(llama, seed=seed))],
        ]
        view = compiled.with_rows(*given)
        with view.decoding(asked, slots=[1, 0, 2], room=2) as steps:
            wanted = llama.with_rows(*given).run(asked, slots=[1, 0, 2], logits="last").logits
            assert relative(steps.logits, wanted[:, -1]) < 1e-5
            steps.step([7, 8, 9])
            assert torch.isfinite(steps.logits).all()
        del view
    assert compiled.receipt.graphs == made

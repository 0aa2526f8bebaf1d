"""Long runs of tokens with one program take a way of their own, to the same end."""

from pathlib import Path
from typing import Any

import pytest
import torch

from steerkit.compiled.latches import LatchTable
from steerkit.kernels.device import DeviceTable
from steerkit.kernels.layout import Capacity
from steerkit.protocols import ModelInfo
from steerkit.vllm import steps
from steerkit.vllm.registrations import Artefacts
from steerkit.vllm.requests import read, steered
from steerkit.vllm.steps import PackedStep, Seats


@pytest.mark.parametrize("whole", [True, False])
def test_runs_of_one_program_are_steered_as_token_by_token(
    info: ModelInfo,
    artefacts: Artefacts,
    steerings: Any,
    register: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: bool,
) -> None:
    """Every kind of steering, each in a slot; an unsteered token between runs or not."""
    register(artefacts, steerings(), tmp_path)
    names = list(artefacts.names)
    programs = [dict(steered(read(n, artefacts), artefacts, info).programs) for n in names]
    every = [program for one in programs for program in one.values()]
    sites = sorted({site for one in programs for site in one})
    n = len(names)
    table = DeviceTable(sites, info.d_model, Capacity.fitting(every, slots=n), dtype=torch.float64)
    latches = LatchTable(table)
    for slot, one in enumerate(programs, 1):
        table.write_slot(slot, one)
        latches.write_slot(slot, one)
    length = 20
    seats = Seats(
        slot=torch.arange(1, n + 1),
        prompt_len=torch.full((n,), 15),
        registers=torch.ones(n, table.capacity.latches, dtype=torch.int8),
        sums=torch.zeros(n, table.capacity.latches, info.d_model, dtype=torch.float64),
    )
    seat = torch.arange(n).repeat_interleave(length)
    absolute = torch.arange(length).repeat(n)
    token = torch.arange(n * length) + (0 if whole else 1) * seat
    draw = torch.Generator().manual_seed(0)
    stream = torch.randn(2, int(token[-1]) + 1, info.d_model, generator=draw, dtype=torch.float64)
    out = []
    for run in (16, 10**6):
        monkeypatch.setattr(steps, "RUN", run)
        step = PackedStep(table, latches, seats, token, seat, absolute)
        assert len(step._runs) == (n if run == 16 else 0)
        found = []
        for place in range(info.n_layers + 1):
            for residual in (stream[1], None):
                hidden = stream[0].clone()
                step.at(hidden, residual, place)
                found.append(hidden)
        out.append(torch.stack(found))
    assert torch.allclose(*out, atol=1e-13, rtol=1e-13)
    moved = (out[0] != stream[0]).any(-1)
    assert torch.equal(moved, (out[1] != stream[0]).any(-1))
    # Every kind moves some of its tokens, and nothing moves between them.
    assert all(moved[:, token[seat == one]].any() for one in range(n))
    rest = torch.ones(stream.shape[1], dtype=torch.bool)
    rest[token] = False
    assert not moved[:, rest].any()

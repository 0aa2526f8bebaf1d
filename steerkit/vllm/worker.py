"""A worker's side: follows the batch of vLLM's runner and makes the step of each pass.

Rows are read from the runner's own batch, right before its forward: its order is final there,
and requests have their names, by which what was decided about one survives its preemption.
(A logits processor would be told of rows too, but by number only, and vLLM turns some of its
fast paths off where a custom one is present.)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerkit.protocols import ModelInfo
from steerkit.site import Site
from steerkit.vllm.operation import Step
from steerkit.vllm.recording import Recorder
from steerkit.vllm.registrations import Artefacts
from steerkit.vllm.requests import KEY, Asked, steered
from steerkit.vllm.room import Room
from steerkit.vllm.steps import PackedStep, Seats, Span, Watched

_kind: type[PackedStep] = PackedStep


@contextmanager
def watching() -> Iterator[dict[Site, dict[int, tuple[Tensor, Tensor]]]]:
    """Keep the streams of steered requests that run inside, in an engine of this process.

    By site and position, what came in and what went out; one request at a time.
    """
    global _kind  # noqa: PLW0603 (engines are made by vLLM, and hold no reference for us)
    seen: dict[Site, dict[int, tuple[Tensor, Tensor]]] = {}
    before, _kind = _kind, type("Watched", (Watched,), {"seen": seen})
    try:
        yield seen
    finally:
        _kind = before


class Followed:
    """The steered and the captured requests of one engine.

    Args:
        info: of the model.
        artefacts: where steering files are kept.
        rows: requests of a batch, at most.
        device: where the stream is.
        dtype: of the stream.
        writes: whether captures are written here, and not by another rank.
    """

    def __init__(
        self,
        info: ModelInfo,
        artefacts: Artefacts,
        rows: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
        writes: bool = True,
    ) -> None:
        self._info, self._artefacts, self._rows = info, artefacts, rows
        self.room = Room(info.d_model, rows, device=device, dtype=dtype)
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        with torch.inference_mode(False):
            self._seats = Seats(
                slot=torch.zeros(rows, dtype=torch.long, device=device),
                prompt_len=torch.ones(rows, dtype=torch.long, device=device),
                registers=torch.zeros(rows, 0, dtype=torch.int8, device=device),
                sums=torch.zeros(rows, 0, info.d_model, dtype=compute, device=device),
            )
        self._recorder = Recorder(artefacts, info.d_vocab, writes=writes)
        self._ids: list[str] = []
        self._plain: set[str] = set()
        self._seat: dict[str, int] = {}
        self._asked: dict[str, Asked] = {}
        self._away: dict[str, Tensor] = {}
        """Registers of requests that were preempted."""
        self._steered: list[tuple[int, int]] = []
        """Row in the batch, and seat."""

    def step(self, runner: Any) -> Step | None:
        """What the runner's next forward is to do; None where it is only to run."""
        batch = runner.input_batch
        if batch.req_ids != self._ids:
            self._follow(list(batch.req_ids), runner.requests)
        if not self._steered and not self._recorder:
            return None
        starts = runner.query_start_loc.np
        computed = batch.num_computed_tokens_cpu

        def tokens(row: int) -> tuple[int, int, int]:
            return int(starts[row]), int(starts[row + 1]), int(computed[row])

        step = self._step([tokens(row) for row, _ in self._steered]) if self._steered else None
        if not self._recorder:
            return step
        rows = {name: tokens(row) for row, name in enumerate(self._ids) if name in self._recorder}
        return self._recorder.step(rows, step, self._seats.slot.device) or step

    def ran(self, runner: Any, hidden: Tensor) -> None:
        """Write what the forward that just ran had to capture.

        Args:
            runner: whose forward it was.
            hidden: what it gave, `[token d_model]`.
        """
        if self._recorder:
            self._recorder.write(hidden, runner.model.compute_logits)

    def _step(self, rows: Sequence[tuple[int, int, int]]) -> PackedStep:
        """The step over the steered rows, each `(first token, end, position of the first)`."""
        table, latches, seats = self.room.table, self.room.latches, self._seats
        assert table is not None and latches is not None
        deciding: list[Span] = []
        if table.capacity.latches:
            length = seats.prompt_len.tolist()
            first = 0
            for (start, end, position), (_, seat) in zip(rows, self._steered, strict=True):
                if position == 0:
                    # What an interrupted first attempt had summed up counts no more.
                    seats.sums[seat].zero_()
                if position < length[seat]:
                    deciding.append(Span(seat, first, first + end - start))
                first += end - start
        token = np.concatenate([np.arange(start, end) for start, end, _ in rows])
        absolute = np.concatenate([np.arange(end - start) + at for start, end, at in rows])
        lengths = [end - start for start, end, _ in rows]
        seat_of = np.repeat([seat for _, seat in self._steered], lengths)
        device = seats.slot.device
        return _kind(
            table,
            latches,
            seats,
            token=torch.from_numpy(token).to(device),
            seat=torch.from_numpy(seat_of).to(device),
            absolute=torch.from_numpy(absolute).to(device),
            deciding=deciding,
        )

    def _follow(self, ids: list[str], requests: Any) -> None:
        """Take in who came, who left and who only went away for a while."""
        there = set(ids)
        for name in [name for name in self._seat if name not in there]:
            seat = self._seat.pop(name)
            if name in requests:
                self._away[name] = self._seats.registers[seat].clone()
            else:
                del self._asked[name]
            self._seats.slot[seat] = 0
        for name in [name for name in self._away if name not in requests]:
            del self._away[name], self._asked[name]
        self._recorder.finished(requests)
        self._plain &= there
        for name in ids:
            if name in self._plain or name in self._seat:
                continue
            asked = self._asked.get(name) or _asked(requests[name])
            if asked is None:
                self._plain.add(name)
                continue
            prompt_len = asked.prompt_len or requests[name].num_prompt_tokens
            if asked.captures:
                self._recorder.follow(name, asked, prompt_len)
            if asked.parts:
                self._asked[name] = asked
                self._sit(name, asked, prompt_len)
            else:
                self._plain.add(name)
        self._ids = ids
        self._steered = [
            (row, self._seat[name]) for row, name in enumerate(ids) if name in self._seat
        ]

    def _sit(self, name: str, asked: Asked, prompt_len: int) -> None:
        found = steered(asked, self._artefacts, self._info)
        taken = set(self._seat.values())
        seat = next(n for n in range(self._rows) if n not in taken)
        used = {self._asked[other].key for other in self._seat}
        slot = self.room.slot(asked.key, found.programs, used)
        self._widen()
        seats = self._seats
        seats.slot[seat], seats.prompt_len[seat] = slot, prompt_len
        seats.sums[seat].zero_()
        seats.registers[seat].zero_()
        held = self._away.pop(name, None)
        if held is not None:
            seats.registers[seat, : len(held)] = held
        self._seat[name] = seat

    def _widen(self) -> None:
        """As many registers as the table numbers."""
        assert self.room.table is not None
        seats, wanted = self._seats, self.room.table.capacity.latches
        missing = wanted - seats.registers.shape[1]
        if missing > 0:
            seats.registers = torch.nn.functional.pad(seats.registers, (0, missing))
            seats.sums = torch.nn.functional.pad(seats.sums, (0, 0, 0, missing))


def _asked(request: Any) -> Asked | None:
    parameters = request.sampling_params
    extra = None if parameters is None else parameters.extra_args
    return Asked.from_wire(extra[KEY]) if extra and KEY in extra else None

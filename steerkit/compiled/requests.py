"""Where the requests of a batch stand, in tensors that graphs read and move on."""

from collections.abc import Sequence

import torch
from torch import Tensor

from steerkit.batch import Batch
from steerkit.compiled.capacity import Capacity


class Requests:
    """The request state of a compiled model (`steerkit.batch.RequestState`), made once.

    Rows beyond a batch are fill: copies of its first row at slot 0.
    """

    def __init__(
        self, capacity: Capacity, d_model: int, device: torch.device, compute: torch.dtype
    ) -> None:
        rows, length = capacity.rows, capacity.length
        with torch.inference_mode(False):
            self.slot = torch.zeros(rows, dtype=torch.long, device=device)
            self.prompt_len = torch.ones(rows, dtype=torch.long, device=device)
            self.position = torch.zeros(rows, dtype=torch.long, device=device)
            """Of the next column; negative on padding."""
            self.column = torch.zeros((), dtype=torch.long, device=device)
            """The next column of the cache."""
            self.mask = torch.ones(rows, length, dtype=torch.long, device=device)
            self.registers = torch.zeros(rows, capacity.latches, dtype=torch.int8, device=device)
            self.sums = torch.zeros(rows, capacity.latches, d_model, dtype=compute, device=device)
            self.chunk = torch.zeros(rows, capacity.chunk, dtype=torch.long, device=device)
            """Token ids of the next columns of the prompts."""
            self.token = torch.zeros(rows, 1, dtype=torch.long, device=device)
            """Token ids of the next single column."""
        self._capacity = capacity

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Everything that a graph reads or writes."""
        return (
            self.slot,
            self.prompt_len,
            self.position,
            self.column,
            self.mask,
            self.registers,
            self.sums,
            self.chunk,
            self.token,
        )

    def begin(self, batch: Batch, slots: Sequence[int]) -> list[Tensor]:
        """Take in a new batch at these slots of the table; gives its columns, chunk by chunk."""
        rows, size = self._capacity.rows, self._capacity.chunk
        n, width = len(batch), self._capacity.chunks(batch.width) * size
        fill = [*range(n), *[0] * (rows - n)]
        padding = width - batch.width
        tokens = torch.nn.functional.pad(batch.tokens[fill], (padding, 0))
        self.mask.fill_(1)
        self.mask[:, :width].copy_(torch.nn.functional.pad(batch.mask[fill], (padding, 0)))
        self.prompt_len.copy_(batch.prompt_len[fill])
        self.position.copy_(batch.mask[fill].sum(1) - width)
        self.column.zero_()
        self.slot.zero_()
        self.slot[:n].copy_(torch.tensor(slots))
        self.registers.zero_()
        self.sums.zero_()
        return [tokens[:, i : i + size] for i in range(0, width, size)]

    def move(self, slots: Sequence[int]) -> None:
        """Point requests at other slots; what was decided for another program is forgotten."""
        new = torch.zeros_like(self.slot)
        new[: len(slots)].copy_(torch.tensor(slots))
        self.forget(new != self.slot)
        self.slot.copy_(new)

    def forget(self, rows: Tensor) -> None:
        """Close the latches of these rows (a boolean each)."""
        self.registers.masked_fill_(rows[:, None], 0)

"""Conditions on the prompt, decided inside the graph that runs the prompt."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

from steerkit.kernels.device import DeviceTable
from steerkit.program import Program
from steerkit.site import Site

SITE, COSINE, ABOVE, MEAN = range(4)
"""Columns of the codes. The site is -1 where a register has no latch."""


class LatchTable:
    """The latches of every slot, by register number, at addresses that never change."""

    def __init__(self, table: DeviceTable) -> None:
        room = (table.capacity.slots + 1, table.capacity.latches)
        strength = table.tensors.strength
        with torch.inference_mode(False):
            self.read = strength.new_zeros(*room, table.d_model)
            self.threshold = strength.new_zeros(*room)
            self.codes = torch.full((*room, 4), -1, dtype=torch.int32, device=strength.device)
        self._table = table

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Everything that a graph reads."""
        return self.read, self.threshold, self.codes

    def write_slot(self, slot: int, programs: Mapping[Site, Program]) -> None:
        """Put in the latches that the slot's gates ask, as the table numbers them."""
        if not self._table.capacity.latches:
            return
        self.codes[slot].fill_(-1)
        found = {latch.name: (site, latch) for site, p in programs.items() for latch in p.latches}
        for register, name in enumerate(self._table.latches(slot)):
            site, latch = found[name]
            gate = latch.condition
            self.read[slot, register].copy_(gate.read)
            self.threshold[slot, register].fill_(gate.threshold)
            code = [
                self._table.number(site),
                gate.measure == "cosine",
                gate.above,
                latch.pooled == "mean_prompt",
            ]
            self.codes[slot, register].copy_(torch.tensor(code, dtype=torch.int32))


class Decided(NamedTuple):
    """Registers of the requests, and what prompts that come in chunks have summed up."""

    registers: Int8[Tensor, "row register"]
    sums: Float[Tensor, "row register d_model"]


def decide(
    before: Decided,
    latches: LatchTable,
    site: int,
    h: Float[Tensor, "row pos d_model"],
    slot: Int[Tensor, "row"],
    absolute: Int[Tensor, "row pos"],
    prompt_len: Int[Tensor, "row"],
) -> Decided:
    """Decide the latches of this site where this pass holds the last token of a row's prompt.

    The same as `steerkit.kernels.gates.decide`, without a look at any value.
    """
    codes = latches.codes[slot]
    here = codes[..., SITE] == site
    x = h.detach().to(latches.read.dtype)
    last = absolute == prompt_len[:, None] - 1
    prompt = (absolute >= 0) & (absolute < prompt_len[:, None])
    sums = before.sums + _total(x, prompt)[:, None]
    sums = torch.where(here[..., None], sums, before.sums)
    mean = sums / prompt_len[:, None, None]
    pooled = torch.where((codes[..., MEAN] == 1)[..., None], mean, _total(x, last)[:, None])
    level = (pooled * latches.read[slot]).sum(-1)
    # The cosine of 0 is 0.
    size = pooled.square().sum(-1).sqrt().clamp(min=torch.finfo(x.dtype).tiny)
    level = torch.where(codes[..., COSINE] == 1, level / size, level)
    threshold = latches.threshold[slot]
    opens = torch.where(codes[..., ABOVE] == 1, level >= threshold, level < threshold)
    now = here & last.any(1, keepdim=True) & (before.registers == 0)
    written = torch.where(opens, 1, -1).to(torch.int8)
    return Decided(torch.where(now, written, before.registers), sums)


def _total(
    x: Float[Tensor, "row pos d_model"], where: Bool[Tensor, "row pos"]
) -> Float[Tensor, "row d_model"]:
    return torch.where(where[..., None], x, 0).sum(1)

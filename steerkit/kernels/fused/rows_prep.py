"""K3: once a step, what every token does at every site, from the state of its request."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from steerkit.kernels import layout
from steerkit.kernels.fused.launch import on_device_of

_RULE = tl.constexpr(layout.RULE)
_LATCH = tl.constexpr(layout.LATCH)
_INDEX = tl.constexpr(layout.INDEX)
_NEVER = tl.constexpr(layout.NEVER)
_ALL = tl.constexpr(layout.ALL)
_PROMPT = tl.constexpr(layout.PROMPT)
_LAST_PROMPT = tl.constexpr(layout.LAST_PROMPT)
_GENERATED = tl.constexpr(layout.GENERATED)
_INDICES = tl.constexpr(layout.INDICES)
_NO_LATCH = tl.constexpr(layout.NO_LATCH)


@triton.jit
def kernel(
    request: tl.tensor,
    absolute: tl.tensor,
    slot: tl.tensor,
    prompt_len: tl.tensor,
    registers: tl.tensor,
    codes: tl.tensor,
    strength: tl.tensor,
    token_slot: tl.tensor,
    active: tl.tensor,
    tokens: tl.tensor,
    SLOTS: tl.constexpr,
    SITES: tl.constexpr,
    RECORDS: tl.constexpr,
    CODES: tl.constexpr,
    INDICES: tl.constexpr,
    REGISTERS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """`BLOCK` tokens at one site; site 0 also writes each token's slot."""
    site = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = token < tokens
    owner = tl.load(request + token, mask=here, other=-1).to(tl.int64)
    at = tl.load(absolute + token, mask=here, other=-1)
    real = (owner >= 0) & (at >= 0)
    its = tl.load(slot + owner, mask=real, other=0).to(tl.int64)
    # Those outside were refused on the way in; this keeps the addresses inside all the same.
    its = tl.where((its >= 0) & (its < SLOTS), its, 0)
    n = tl.load(prompt_len + owner, mask=real, other=0)
    live = real & (tl.load(strength + its, mask=real, other=0.0) != 0)
    bits = tl.zeros([BLOCK], tl.int64)
    for record in tl.static_range(RECORDS):
        code = codes + ((its * SITES + site) * RECORDS + record) * CODES
        rule = tl.load(code + _RULE, mask=live, other=_NEVER)
        on = rule == _ALL
        on = on | ((rule == _PROMPT) & (at < n))
        on = on | ((rule == _LAST_PROMPT) & (at == n - 1))
        on = on | ((rule == _GENERATED) & (at >= n))
        for i in tl.static_range(INDICES):
            index = tl.load(code + _INDEX + i, mask=live & (rule == _INDICES), other=0)
            place = tl.where(index >= 0, index, index + n)
            on = on | ((rule == _INDICES) & (at == place))
        asked = tl.load(code + _LATCH, mask=live & on, other=_NO_LATCH)
        if REGISTERS > 0:
            latched = live & on & (asked != _NO_LATCH)
            held = tl.load(registers + owner * REGISTERS + asked, mask=latched, other=0)
            on = on & ((asked == _NO_LATCH) | ((held > 0) & (at >= n - 1)))
        else:
            on = on & (asked == _NO_LATCH)
        bits = bits | tl.where(live & on, tl.full([BLOCK], 1, tl.int64) << record, 0)
    tl.store(active + site * tokens + token, bits, mask=here)
    if site == 0:
        tl.store(token_slot + token, its, mask=here)


def _outputs(request: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    token_slot = torch.empty_like(request, dtype=torch.int64)
    shape = (codes.shape[1], *request.shape)
    return token_slot, torch.empty(shape, dtype=torch.int64, device=request.device)


@torch.library.custom_op("steerkit::rows_prep", mutates_args=())
def rows_prep(
    request: Tensor,
    absolute: Tensor,
    slot: Tensor,
    prompt_len: Tensor,
    registers: Tensor,
    codes: Tensor,
    strength: Tensor,
) -> tuple[Tensor, Tensor]:
    """`static.prepare`: slots and active bits of the tokens; without registers, width 0."""
    token_slot, active = (part.contiguous() for part in _outputs(request, codes))
    slots, sites, groups, terms, width = codes.shape
    tokens = request.numel()
    if tokens:
        block = min(256, triton.next_power_of_2(tokens))
        with on_device_of(request):
            kernel[(triton.cdiv(tokens, block), sites)](
                request.contiguous(), absolute.contiguous(), slot.contiguous(),
                prompt_len.contiguous(), registers.contiguous(), codes, strength,
                token_slot, active, tokens, SLOTS=slots, SITES=sites, RECORDS=groups * terms,
                CODES=width, INDICES=width - layout.INDEX, REGISTERS=registers.shape[-1],
                BLOCK=block,
            )  # fmt: skip
    return token_slot, active


@rows_prep.register_fake
def _(request: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _outputs(request, rest[-2])

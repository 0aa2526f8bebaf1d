"""Programs from a device table in plain torch of fixed shapes: the compiled path.

Nothing here looks at a value on the host, so that everything can stand in a full graph.
Inductor fuses it into its neighbours. It is also the CPU path of `dispatch`, and what the
Triton kernels are differentiated by.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

from steerkit.kernels import layout
from steerkit.kernels.device import TableTensors
from steerkit.program import Opcode


class Rows(NamedTuple):
    """What the tokens of one step do, at every site. Made once a step by `prepare`."""

    slot: Int[Tensor, "*token"]
    """Program of each token; 0 on padding."""
    active: Int[Tensor, "site *token"]
    """Which terms may act: bit `group * terms + term` of each token. 0 means *skip*."""


def prepare(
    tensors: TableTensors,
    request: Int[Tensor, "*token"],
    absolute: Int[Tensor, "*token"],
    slot: Int[Tensor, "request"],
    prompt_len: Int[Tensor, "request"],
    registers: Int8[Tensor, "request register"] | None = None,
) -> Rows:
    """Evaluate slots, strengths, position rules and latches for the tokens of a step.

    Args:
        tensors: of the table.
        request: which request each token belongs to; negative for none.
        absolute: position of each token in its own request; negative on padding.
        slot: program of each request, within the table (`DeviceTable.check_slots`).
        prompt_len: tokens of each request's prompt.
        registers: of each request's latches, from `DeviceTable.registers`. Without them every
            latch is undecided, and so closed.
    """
    real = (absolute >= 0) & (request >= 0)
    owner = request.clamp(min=0)
    token_slot = torch.where(real, slot[owner], 0)
    length = prompt_len[owner]
    codes = tensors.codes[token_slot].long()
    at, n = (part[..., None, None, None] for part in (absolute, length))
    rule = codes[..., layout.RULE]
    on = (
        (rule == layout.ALL)
        | ((rule == layout.PROMPT) & (at < n))
        | ((rule == layout.LAST_PROMPT) & (at == n - 1))
        | ((rule == layout.GENERATED) & (at >= n))
    )
    if tensors.capacity.indices:
        index = codes[..., layout.INDEX :]
        place = torch.where(index >= 0, index, index + n[..., None])
        on = on | ((rule == layout.INDICES) & (at[..., None] == place).any(-1))
    if tensors.capacity.latches:
        asked = codes[..., layout.LATCH]
        free = asked == layout.NO_LATCH
        if registers is not None:
            held = registers[owner][..., None, None, :].expand(*asked.shape[:-1], -1)
            opened = held.gather(-1, asked.clamp(min=0)) > 0
            free = free | (opened & (at >= n - 1))
        on = on & free
    on = on & (real & (tensors.strength[token_slot] != 0))[..., None, None, None]
    flat = on.flatten(-2)
    active = (flat.long() << torch.arange(flat.shape[-1], device=flat.device)).sum(-1)
    return Rows(token_slot, active.movedim(-1, 0))


def rows_program(
    h: Float[Tensor, "*token d_model"],
    slot: Int[Tensor, "*token_or_none"],
    active: Int[Tensor, "*token"],
    tensors: TableTensors,
    site: int,
) -> Float[Tensor, "*token d_model"]:
    """Run each token's program: (1 + sum_j g_j) h + sum_j c_j W_j, group after group.

    Computed in the table's dtype and rounded once. Tokens at which nothing acts (slot 0, no
    active bit, every gate closed) keep their bits, whatever they, other slots or other terms
    hold. Differentiable in h and the table; gates are decided without a gradient.

    Args:
        h: the stream.
        slot: program of each token; of no dimensions where all share one, whose vectors are then
            not copied for each of them.
        active: the terms that may act at this site, `Rows.active[site]`.
        tensors: of the table.
        site: number of the site in the table.
    """
    touched = active != 0
    # Not h itself: what cannot be read must not reach a gradient, not even times 0.
    x = torch.where(touched[..., None], h, 0).to(tensors.numbers.dtype)
    terms = tensors.capacity.terms
    bits = active[..., None] >> torch.arange(tensors.capacity.groups * terms, device=active.device)
    on = (bits & 1) != 0
    moved = torch.zeros_like(touched)
    for group in range(tensors.capacity.groups):
        part = slice(group * terms, (group + 1) * terms)
        steered, acted = _group(x, on[..., part], slot, tensors, site, group)
        x = torch.where(acted[..., None], steered, x)
        moved = moved | acted
    return torch.where(moved[..., None], x.to(h.dtype), h)


def _group(
    x: Float[Tensor, "*token d_model"],
    on: Bool[Tensor, "*token term"],
    slot: Int[Tensor, "*token_or_none"],
    tensors: TableTensors,
    site: int,
    group: int,
) -> tuple[Float[Tensor, "*token d_model"], Bool[Tensor, "*token"]]:
    """What one group makes of x, and where any of its terms acted."""
    capacity = tensors.capacity
    numbers = tensors.numbers[:, site, group][slot]
    codes = tensors.codes[:, site, group][slot]
    write = tensors.write[:, site, group][slot]
    if capacity.gates:
        gate = tensors.gate[:, site, group][slot]
        on = on & _open(x.detach(), gate, numbers[..., layout.THRESHOLD], codes[..., layout.GATE])
    low, high, z = (numbers[..., i] for i in (layout.X, layout.Y, layout.Z))
    opcode = codes[..., layout.OPCODE]
    # Open edges of a clamp are infinite, and would reach gradients through other opcodes.
    clamps = opcode == int(Opcode.CLAMP)
    a, b = torch.where(clamps, 0, low), torch.where(clamps, 0, high)
    c = a
    if capacity.reads:
        read = tensors.read[:, site, group][slot]
        p = _levels(x, read) - numbers[..., layout.OFFSET]
        if Opcode.AFFINE in capacity.opcodes:
            c = torch.where(opcode == int(Opcode.AFFINE), a * p + b, c)
        if Opcode.CLAMP in capacity.opcodes:
            c = torch.where(clamps, z * (p.clamp(low, high) - p), c)
        if Opcode.ACTIVATION in capacity.opcodes:
            c = torch.where(opcode == int(Opcode.ACTIVATION), z * (a - torch.where(p > b, p, 0)), c)
        if Opcode.TURN in capacity.opcodes:
            q = p.gather(-1, codes[..., layout.PARTNER].long().expand(p.shape))
            c = torch.where(opcode == int(Opcode.TURN), z * (a * _root(p * p + q * q) - p), c)
    strength = tensors.strength[slot][..., None]
    if Opcode.KEEP_NORM in capacity.opcodes:
        keeps = opcode == int(Opcode.KEEP_NORM)
        added = torch.where(keeps, a, 0)
        size = _root(x.square().sum(-1, keepdim=True))
        new = _root((x[..., None, :] + added[..., None] * write).square().sum(-1))
        nowhere = new == 0
        ratio = torch.where(nowhere, 1, size / torch.where(nowhere, 1, new))
        c = torch.where(keeps, torch.where(nowhere, 0, ratio * a), c)
        gain = torch.where(keeps & on, strength * (ratio - 1), 0).sum(-1, keepdim=True)
        x = x * (1 + gain)
    if write.ndim == 2:
        return x + torch.where(on, strength * c, 0) @ write, on.any(-1)
    change = torch.where(on[..., None], (strength * c)[..., None] * write, 0)
    return x + change.sum(-2), on.any(-1)


def _levels(
    x: Float[Tensor, "*token d_model"], rows: Float[Tensor, "*token_or_none term d_model"]
) -> Float[Tensor, "*token term"]:
    """Each token's products with its own rows, or with those that all tokens share."""
    return x @ rows.T if rows.ndim == 2 else (x[..., None, :] * rows).sum(-1)


def _open(
    x: Float[Tensor, "*token d_model"],
    gate: Float[Tensor, "*token_or_none term d_model"],
    threshold: Float[Tensor, "*token_or_none term"],
    code: Int[Tensor, "*token_or_none term"],
) -> Bool[Tensor, "*token term"]:
    """Which terms their gates let act; a level that is NaN is neither above nor below."""
    level = _levels(x, gate)
    size = x.square().sum(-1, keepdim=True).sqrt()
    # The cosine of 0 is 0.
    cosine = level / size.clamp(min=torch.finfo(x.dtype).tiny)
    level = torch.where((code & layout.COSINE) != 0, cosine, level)
    passes = torch.where((code & layout.ABOVE) != 0, level >= threshold, level < threshold)
    return (code == layout.OPEN) | passes


def _root(square: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Square root whose gradient at 0 is 0."""
    zero = square == 0
    return torch.where(zero, 0, torch.where(zero, 1, square).sqrt())


def add_rmsnorm(
    x: Float[Tensor, "*token d_model"],
    residual: Float[Tensor, "*token d_model"],
    weight: Float[Tensor, "d_model"],
    slot: Int[Tensor, "*token"],
    active: Int[Tensor, "*token"],
    tensors: TableTensors,
    site: int,
    *,
    eps: float,
    gemma: bool = False,
) -> tuple[Float[Tensor, "*token d_model"], Float[Tensor, "*token d_model"]]:
    """The stream x + residual under each token's program, and its RMSNorm.

    The norm is of the stream before it is rounded. Llama casts the unit row to the stream's
    dtype and multiplies by the weight; Gemma multiplies by 1 + weight before it casts.
    """
    compute = tensors.numbers.dtype
    h = x.to(compute) + residual.to(compute)
    h = rows_program(h, slot, active, tensors, site)
    unit = h / (h.square().mean(-1, keepdim=True) + eps).sqrt()
    if gemma:
        return h.to(x.dtype), (unit * (1 + weight.to(compute))).to(x.dtype)
    dtype = torch.promote_types(x.dtype, weight.dtype)
    return h.to(x.dtype), (unit.to(x.dtype).to(compute) * weight.to(compute)).to(dtype)


def capture_rows(
    h: Float[Tensor, "*token d_model"],
    place: Int[Tensor, "*token"],
    ring: Float[Tensor, "place_and_one d_model"],
) -> None:
    """Write row t of h, cast, to `ring[place[t]]`; a negative place is nowhere.

    The ring's last row belongs to nobody: rows without a place are written there.
    """
    last = ring.shape[0] - 1
    to = torch.where((place >= 0) & (place < last), place, last)
    ring.index_copy_(0, to.reshape(-1), h.reshape(-1, h.shape[-1]).to(ring.dtype))


def places(
    selected: Bool[Tensor, "*token"], written: Int[Tensor, ""], capacity: int
) -> Int[Tensor, "*token"]:
    """Where the selected tokens go in a ring of `capacity` rows: the next ones, round and round.

    `written` counts all rows ever selected and is advanced in place. Of more tokens than the
    ring holds, the last are kept.
    """
    flat = selected.reshape(-1)
    rank = flat.long().cumsum(0) - 1
    fresh = flat & (rank >= flat.sum() - capacity)
    out = torch.where(fresh, (written + rank) % capacity, -1).view(selected.shape)
    written += flat.sum()
    return out

"""Programs in plain torch: correct everywhere, the path on a CPU, and what kernels must equal."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from steerkit.errors import InterventionError
from steerkit.kernels.tables import PackedSite as PackedSite
from steerkit.kernels.tables import Terms
from steerkit.kernels.tables import pack as pack
from steerkit.program import Opcode

_HOST_SLOTS = WeakTensorKeyDictionary()


def apply(
    packed: PackedSite,
    h: Float[Tensor, "batch pos d_model"],
    *,
    absolute: Int[Tensor, "batch pos"],
    prompt_len: Int[Tensor, "batch"],
    row: Int[Tensor, "batch"],
    slot: Int[Tensor, "batch"] | Sequence[int],
) -> Float[Tensor, "batch pos d_model"]:
    """Run each row's program on the stream: h + sum_j c_j(h) W_j, group after group.

    Reads and coefficients are computed in float32 (float64 for a float64 stream) and the
    result is rounded once to the stream's dtype. Tokens that no term touches, and rows at
    slot 0, keep their bits, whatever stands in other rows, slots or tokens; where nothing
    can act, h itself is returned. Never in place; differentiable in h.

    Args:
        packed: the programs of this site, from `pack`.
        h: the stream.
        absolute: position of each token in its own row; negative on padding.
        prompt_len: tokens of each row's prompt.
        row: which of the caller's prompts each row is.
        slot: program of each row, 0 for none. A tensor on an accelerator is read once, so
            give the same one at every layer and step.

    Raises:
        InterventionError: a slot outside the table, or a stream of another width.
    """
    slots = _host(slot)
    packed.check_slots(slots)
    if packed.d_model is None or not any(packed.slots[s] for s in set(slots)):
        return h
    if h.ndim != 3 or h.shape[2] != packed.d_model or len(slots) != h.shape[0]:
        raise InterventionError(
            f"a program of width {packed.d_model} over {len(slots)} rows cannot run on a stream "
            f"of shape {tuple(h.shape)}, expected [batch pos d_model]; was the direction taken "
            "on this model?"
        )
    live = _live_rows(packed, slots, h.device)
    if live is None:
        return _run(packed.terms(slots), h, absolute, prompt_len, row)
    part = h.index_select(0, live)
    terms = packed.terms(tuple(s for s in slots if packed.slots[s]))
    steered = _run(terms, part, absolute[live], prompt_len[live], row[live])
    return h if steered is part else h.index_copy(0, live, steered)


def _host(slot: Tensor | Sequence[int]) -> tuple[int, ...]:
    """Slots as Python ints, read from a device once for each tensor."""
    if not isinstance(slot, Tensor):
        return tuple(slot)
    if slot.device.type == "cpu":
        return tuple(slot.tolist())
    version, known = _HOST_SLOTS.get(slot, (None, ()))
    if version != slot._version:
        known = tuple(slot.tolist())
        _HOST_SLOTS[slot] = (slot._version, known)
    return known


@lru_cache(maxsize=1024)
def _live_rows(
    packed: PackedSite, slots: tuple[int, ...], device: torch.device
) -> Int[Tensor, "live"] | None:
    """Rows whose program does something here; None where all do."""
    live = [i for i, slot in enumerate(slots) if packed.slots[slot]]
    if len(live) == len(slots):
        return None
    # A tensor made under inference_mode could never be saved for a later backward pass.
    with torch.inference_mode(False):
        return torch.tensor(live, device=device)


def _run(
    groups: Sequence[Terms],
    h: Float[Tensor, "row pos d_model"],
    absolute: Int[Tensor, "row pos"],
    prompt_len: Int[Tensor, "row"],
    row: Int[Tensor, "row"],
) -> Float[Tensor, "row pos d_model"]:
    """All groups in order, on rows that all have a program; rounded to the stream's dtype once."""
    active = [terms.rules.active(absolute, prompt_len, row) for terms in groups]
    touched = _anywhere(active)
    first, end, full = _span(touched) if h.device.type == "cpu" else (0, h.shape[1], False)
    if first == end:
        return h
    part = h if end - first == h.shape[1] else h[:, first:end]
    x = part
    for terms, everywhere in zip(groups, active, strict=True):
        here = everywhere if part is h else everywhere[:, first:end]
        steered = _steer(terms, x, here)
        # A single group's untouched tokens are put back below.
        x = torch.where(here.any(-1, True), steered, x) if active[1:] else steered
    x = x.to(h.dtype)
    if not full:
        x = torch.where(touched[:, first:end, None], x, part)
    return x if part is h else h.slice_scatter(x, 1, first, end)


def _anywhere(active: Sequence[Bool[Tensor, "row pos term"]]) -> Bool[Tensor, "row pos"]:
    """Where any term of any group acts."""
    touched = [a[..., 0] if a.shape[-1] == 1 else a.any(-1) for a in active]
    return touched[0] if len(touched) == 1 else torch.stack(touched).any(0)


def _span(touched: Bool[Tensor, "row pos"]) -> tuple[int, int, bool]:
    """First and end column that are touched, and whether every token between them is.

    A rule such as last_prompt then costs one column. Only on a CPU, where looking is free;
    an accelerator would have to be waited for.
    """
    if touched.all():
        return 0, touched.shape[1], True
    columns = touched.any(0).nonzero()
    if not len(columns):
        return 0, 0, False
    first, end = int(columns[0]), int(columns[-1]) + 1
    return first, end, bool(touched[:, first:end].all())


def _steer(
    terms: Terms,
    h: Float[Tensor, "row pos d_model"],
    active: Bool[Tensor, "row pos term_or_1"],
) -> Float[Tensor, "row pos d_model"]:
    """h + c W at every token, in the dtype of the terms.

    c is 0 for terms that are inactive where others act; tokens where none acts are left to
    the caller to put back.
    """
    x = h.to(terms.read.dtype)
    if terms.shift is not None:
        return x + terms.shift
    c = _coefficients(terms, x)
    if terms.rules.which is not None:
        c = torch.where(active, c, x.new_zeros(()))
    if terms.write.ndim == 3:
        return torch.baddbmm(x, c, terms.write)
    if terms.write.shape[0] == 1:
        return torch.addcmul(x, c, terms.write)
    flat = torch.addmm(x.reshape(-1, x.shape[-1]), c.reshape(-1, c.shape[-1]), terms.write)
    return flat.view(x.shape)


def _coefficients(
    terms: Terms, x: Float[Tensor, "row pos d_model"]
) -> Float[Tensor, "row pos term"]:
    """c of each term at each token."""
    if terms.kinds == {Opcode.CONSTANT}:
        return terms.bias
    # What is affine in h is folded into the read: one product gives c, or p for a clamp.
    c = x @ terms.read.mT + terms.bias
    if Opcode.CLAMP in terms.kinds:
        moved = terms.mix * (c.clamp(terms.low, terms.high) - c)
        c = torch.where(terms.clamps, moved, c) if len(terms.kinds) > 1 else moved
    # Not 0 * p: a constant term takes no notice of an infinite read.
    return torch.where(terms.constant, terms.bias, c) if Opcode.CONSTANT in terms.kinds else c

"""Programs in plain torch: correct everywhere, the path on a CPU, and what kernels must equal."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.weak import WeakTensorKeyDictionary

from steerkit.errors import InterventionError
from steerkit.kernels.gates import decide
from steerkit.kernels.place import Place, selection
from steerkit.kernels.plan import Plan, plan_of
from steerkit.kernels.tables import PackedSite as PackedSite
from steerkit.kernels.tables import Terms
from steerkit.kernels.tables import pack as pack
from steerkit.program import Opcode

MANY = 1 << 17
"""Elements of a stream from which on it pays to look which of its tokens are touched."""
_HOST_SLOTS = WeakTensorKeyDictionary()


def apply(
    packed: PackedSite,
    h: Float[Tensor, "batch pos d_model"],
    *,
    absolute: Int[Tensor, "batch pos"],
    prompt_len: Int[Tensor, "batch"],
    row: Int[Tensor, "batch"],
    slot: Int[Tensor, "batch"] | Sequence[int],
    latches: MutableMapping[str, Tensor] | None = None,
) -> Float[Tensor, "batch pos d_model"]:
    """Run each row's program on the stream: (1 + sum_j g_j) h + sum_j c_j(h) W_j, group by group.

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
        latches: what was decided about these requests; latches of this site are written to
            it, before the groups run. Give the same one at every layer and step; without
            one the stream is a whole text, of which only this site decides.

    Raises:
        InterventionError: a slot outside the table, or a stream of another width.
    """
    plan = plan_of(packed, _host(slot))
    return steer(
        plan, h, Place(lambda: absolute, prompt_len, row), {} if latches is None else latches
    )


def steer(
    plan: Plan,
    h: Float[Tensor, "batch pos d_model"],
    place: Place,
    latches: MutableMapping[str, Tensor],
) -> Float[Tensor, "batch pos d_model"]:
    """`apply`, with what passes share (their plan) and what sites do (where columns stand)."""
    shift = plan.shift
    if shift is not None and place.whole and h.dtype == shift.dtype:
        # By far the commonest case, and a step of a small model takes as long as 100 calls.
        _check_shape(plan, h)
        return h + shift
    for latch, rows in plan.deciders:
        decide(latch, rows, h, place.absolute, place.prompt_len, latches, plan.dtype)
    if not plan.groups:
        return h
    _check_shape(plan, h)
    live = plan.live
    if live is None:
        if not (plan.everywhere and place.whole):
            return _run(plan, h, place, latches)
        x = h
        for terms in plan.groups:
            x = _steer(terms, x, None)
        return x if x.dtype == h.dtype else x.to(h.dtype)
    part = h.index_select(0, live)
    held = {name: r.to(h.device)[live] for name, r in latches.items()} if plan.gated else {}
    steered = _run(plan, part, place.some(live), held)
    return h if steered is part else h.index_copy(0, live, steered)


def _check_shape(plan: Plan, h: Tensor) -> None:
    shape = h.shape
    if len(shape) != 3 or shape[0] != plan.rows or shape[2] != plan.d_model:
        raise InterventionError(
            f"a program of width {plan.d_model} over {plan.rows} rows cannot run on a stream "
            f"of shape {tuple(shape)}, expected [batch pos d_model]; was the direction taken "
            "on this model?"
        )


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


def _run(
    plan: Plan,
    h: Float[Tensor, "row pos d_model"],
    place: Place,
    latches: Mapping[str, Tensor],
) -> Float[Tensor, "row pos d_model"]:
    """All groups in order, on rows that all have a program; rounded to the stream's dtype once."""
    groups = plan.groups
    look = h.device.type == "cpu"
    if plan.gated:
        chosen = selection([_allowed(terms, place, latches) for terms in groups], look=look)
    else:
        chosen = place.selection(groups, plan.shared, look=look)
    active, touched, first, end, full = chosen
    if first == end:
        return h
    part = h if end - first == h.shape[1] else h[:, first:end]
    if part is not h:
        active, touched = tuple(a[:, first:end] for a in active), touched[:, first:end]
    x = part
    if plan.gated:
        x, touched = _gated(groups, x, active)
        full = False
    else:
        for terms, here in zip(groups, active, strict=True):
            steered = _steer(terms, x, here)
            # A single group's untouched tokens are put back below.
            x = _chosen(here.any(-1), steered, x) if active[1:] else steered
    if x is part:
        return h
    x = x.to(h.dtype)
    if not full:
        x = _chosen(touched, x, part)
    return x if part is h else h.slice_scatter(x, 1, first, end)


def _allowed(
    terms: Terms, place: Place, latches: Mapping[str, Tensor]
) -> Bool[Tensor, "row pos term_or_1"]:
    """Where the terms of a group act, as far as positions and latches say."""
    active = place.active(terms.rules)
    if terms.gates is None or terms.gates.latch is None:
        return active
    return active & terms.gates.latch.open(latches, place.absolute, place.prompt_len)


def _gated(
    groups: Sequence[Terms],
    x: Float[Tensor, "row pos d_model"],
    active: Sequence[Bool[Tensor, "row pos term_or_1"]],
) -> tuple[Float[Tensor, "row pos d_model"], Bool[Tensor, "row pos"]]:
    """All groups, the tokens of each as its gates say, and the tokens that were touched."""
    touched = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    for terms, allowed in zip(groups, active, strict=True):
        here = allowed
        if terms.gates is not None and terms.gates.token is not None:
            here = allowed & terms.gates.token.open(x.to(terms.read.dtype))
        anywhere = here.any(-1)
        # Looking is free on a CPU; an accelerator would have to be waited for.
        if x.device.type == "cpu" and not anywhere.any():
            continue
        steered = _steer(terms, x, here)
        # A single group's untouched tokens are put back by the caller.
        x = _chosen(anywhere, steered, x) if groups[1:] else steered
        touched = touched | anywhere
    return x, touched


def _chosen(
    touched: Bool[Tensor, "row pos"],
    steered: Float[Tensor, "row pos d_model"],
    h: Float[Tensor, "row pos d_model"],
) -> Float[Tensor, "row pos d_model"]:
    """`steered`, which is overwritten, where a token was touched; `h` elsewhere."""
    if h.device.type != "cpu" or h.numel() < MANY:
        return torch.where(touched[..., None], steered, h)
    # On a CPU a mask costs several times what copying does, so the rarer tokens are copied.
    h = h.to(steered.dtype)
    if 2 * int(touched.sum()) < touched.numel():
        row, column = touched.nonzero(as_tuple=True)
        return h.index_put((row, column), steered[row, column])
    row, column = (~touched).nonzero(as_tuple=True)
    return steered.index_put_((row, column), h[row, column])


def _steer(
    terms: Terms,
    h: Float[Tensor, "row pos d_model"],
    active: Bool[Tensor, "row pos term_or_1"] | None,
) -> Float[Tensor, "row pos d_model"]:
    """(1 + g) h + c W at every token, in the dtype of the terms.

    c and g are 0 for terms that are inactive where others act (None: all act everywhere);
    tokens where none acts are left to the caller to put back.
    """
    # Asking first is several times cheaper than a conversion that does nothing.
    x = h if h.dtype == terms.read.dtype else h.to(terms.read.dtype)
    if terms.shift is not None:
        return x + terms.shift
    if active is not None and x.requires_grad and terms.kinds & ROOTS:
        # Their slope has no value at a NaN, such as padding may hold, which 0 does not undo.
        x = torch.where(active.any(-1, True), x, x.new_zeros(()))
    c = _coefficients(terms, x)
    gain = None
    if terms.keeping:
        c, gain = _keeping(terms, x, c)
    if active is not None and (terms.rules.which is not None or terms.gates is not None):
        c = torch.where(active, c, x.new_zeros(()))
        gain = gain if gain is None else torch.where(active, gain, x.new_zeros(()))
    if gain is not None:
        x = x * (1 + gain.sum(-1, True))
    # A product with one row is an outer product: half the time, one program or many.
    if terms.write.shape[-2] == 1:
        return torch.addcmul(x, c, terms.write)
    if terms.write.ndim == 3:
        return torch.baddbmm(x, c, terms.write)
    flat = torch.addmm(x.reshape(-1, x.shape[-1]), c.reshape(-1, c.shape[-1]), terms.write)
    return flat.view(x.shape)


def _coefficients(
    terms: Terms, x: Float[Tensor, "row pos d_model"]
) -> Float[Tensor, "row pos term"]:
    """c of each term at each token, as far as it needs no norm of h."""
    if terms.kinds <= NO_READ:
        return terms.bias
    # What is affine in h is folded into the read: one product gives c, or p for the others.
    shared = terms.read.ndim == 2
    c = p = linear(x, terms.read, terms.bias) if shared else x @ terms.read.mT + terms.bias
    if terms.kinds == AFFINE:
        return c
    for opcode, rule in RULES.items():
        if opcode in terms.kinds:
            made = rule(terms, p)
            c = torch.where(terms.where[opcode], made, c) if len(terms.kinds) > 1 else made
    # Not 0 * p: a constant term takes no notice of an infinite read.
    if Opcode.CONSTANT in terms.kinds:
        c = torch.where(terms.where[Opcode.CONSTANT], terms.bias, c)
    return c


def _clamp(terms: Terms, p: Float[Tensor, "row pos term"]) -> Float[Tensor, "row pos term"]:
    return terms.z * (p.clamp(terms.low, terms.high) - p)


def _activation(terms: Terms, p: Float[Tensor, "row pos term"]) -> Float[Tensor, "row pos term"]:
    return terms.z * (terms.x - torch.where(p > terms.y, p, p.new_zeros(())))


def _turn(terms: Terms, p: Float[Tensor, "row pos term"]) -> Float[Tensor, "row pos term"]:
    assert terms.partner is not None
    q = p.gather(-1, terms.partner.expand_as(p))
    # At the origin the angle, and so the slope of the radius, has no value.
    origin = (p == 0) & (q == 0)
    radius = torch.hypot(torch.where(origin, p.new_ones(()), p), q)
    return terms.z * (terms.x * radius.masked_fill(origin, 0) - p)


def _keeping(
    terms: Terms, x: Float[Tensor, "row pos d_model"], c: Float[Tensor, "row pos term"]
) -> tuple[Float[Tensor, "row pos term"], Float[Tensor, "row pos term"]]:
    """c and g of each term, with those that keep the norm of h.

    The norms are taken from the vectors themselves: |h|^2 + 2 x p + x^2 loses its digits
    where the sum is short.
    """
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    gain = x.new_zeros((*x.shape[:2], terms.write.shape[-2]))
    c = c.expand_as(gain)
    kept, amount = terms.where[Opcode.KEEP_NORM], terms.x
    for j in terms.keeping:
        row = terms.write[..., j, :] if terms.write.ndim == 2 else terms.write[:, j, None]
        moved = torch.linalg.vector_norm(x + amount[..., j : j + 1] * row, dim=-1, keepdim=True)
        here = kept[..., j : j + 1] & (moved > 0)
        ratio = size / moved.masked_fill(~here, 1)
        term = slice(j, j + 1)
        c = c.slice_scatter(
            torch.where(here, ratio * amount[..., term], c[..., term]), -1, j, j + 1
        )
        gain = gain.slice_scatter(torch.where(here, ratio - 1, 0), -1, j, j + 1)
    return c, gain


RULES: dict[Opcode, Callable[[Terms, Tensor], Tensor]] = {
    Opcode.CLAMP: _clamp,
    Opcode.ACTIVATION: _activation,
    Opcode.TURN: _turn,
}
"""Opcodes whose coefficient is more than an affine function of the read."""
AFFINE = frozenset({Opcode.AFFINE})
NO_READ = frozenset({Opcode.CONSTANT, Opcode.KEEP_NORM})
"""Opcodes whose coefficient is the bias, as far as it needs no norm."""
ROOTS = frozenset({Opcode.TURN, Opcode.KEEP_NORM})
"""Opcodes that take a square root."""

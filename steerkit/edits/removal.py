"""Take directions out of a parameter, and put them back to the last bit.

All arithmetic is float64. What is put back is the removed part plus, for the few values that
rounding has moved, the values themselves.
"""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 1 << 22
"""Values held in float64 at a time."""


class Basis(NamedTuple):
    """What is taken out of a vector x: x - writes (reads^T x), both float64, reads^T writes = I.

    An orthogonal projection where both are one orthonormal basis.
    """

    reads: Float[Tensor, "d_model k"]
    writes: Float[Tensor, "d_model k"]


@dataclass(frozen=True, eq=False)
class Removal:
    """What was removed from one parameter.

    Attributes:
        removed: `[row k]` float64, what the basis reads in the parameter, its d_model axis
            last and all others flattened to rows.
        moved: flat indices (in that layout) that adding `removed` back does not restore.
        values: what stood there, in the parameter's dtype.
        before: sha256 of the parameter's bytes before the edit.
        after: and after it.
    """

    removed: Float[Tensor, "row k"]
    moved: Int[Tensor, "n"]
    values: Tensor
    before: str
    after: str


def remove(parameter: Tensor, axis: int, basis: Basis, *, reversible: bool = True) -> Removal:
    """Project a parameter in place off a basis: each row x becomes x - writes (reads^T x).

    With `reversible=False` the few values that rounding moves are not looked for, and
    `restore` gives the parameter back up to rounding only.
    """
    reads, writes = (part.to(parameter.device) for part in basis)
    before = sha256(parameter)
    moved, values, parts = [], [], []
    with torch.no_grad():
        rows = parameter.movedim(axis, -1)
        flat = rows.reshape(-1, rows.shape[-1])
        new = torch.empty_like(flat)
        step = max(1, CHUNK // flat.shape[1])
        for start in range(0, flat.shape[0], step):
            old = flat[start : start + step]
            part = old.double() @ reads
            edited = (old.double() - _along(part, writes)).to(old.dtype)
            new[start : start + step] = edited
            parts.append(part.cpu())
            if reversible:
                back = (edited.double() + _along(part, writes)).to(old.dtype)
                wrong = (_bits(back) != _bits(old)).flatten().nonzero().flatten()
                moved.append((wrong + start * flat.shape[1]).cpu())
                values.append(old.reshape(-1)[wrong].cpu())
        parameter.copy_(new.view(rows.shape).movedim(-1, axis))
    empty = torch.empty(0, dtype=torch.long), torch.empty(0, dtype=parameter.dtype)
    indices = torch.cat(moved) if moved else empty[0]
    return Removal(
        torch.cat(parts),
        indices.int() if parameter.numel() < 2**31 else indices,
        torch.cat(values) if values else empty[1],
        before,
        sha256(parameter),
    )


def restore(parameter: Tensor, axis: int, basis: Basis, removal: Removal) -> None:
    """The inverse of `remove`, in place."""
    writes = basis.writes.to(parameter.device)
    with torch.no_grad():
        rows = parameter.movedim(axis, -1)
        flat = rows.reshape(-1, rows.shape[-1]).clone(memory_format=torch.contiguous_format)
        step = max(1, CHUNK // flat.shape[1])
        for start in range(0, flat.shape[0], step):
            part = removal.removed[start : start + step].to(parameter.device)
            new = flat[start : start + step]
            flat[start : start + step] = (new.double() + _along(part, writes)).to(new.dtype)
        moved = removal.moved.long().to(parameter.device)
        flat.view(-1)[moved] = removal.values.to(parameter.device)
        parameter.copy_(flat.view(rows.shape).movedim(-1, axis))


def sha256(tensor: Tensor) -> str:
    """sha256 of a tensor's bytes, in its own order."""
    # View as bytes only after flattening: a scalar or an odd layout has no byte view.
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(data.numpy().data).hexdigest()


def _along(part: Tensor, writes: Tensor) -> Tensor:
    """part @ writes.T by single products and sums, which every machine rounds alike."""
    total = torch.zeros(part.shape[0], writes.shape[0], dtype=torch.float64, device=writes.device)
    for j in range(writes.shape[1]):
        total = total + part[:, j : j + 1] * writes[:, j]
    return total


def _bits(tensor: Tensor) -> Tensor:
    """The values as integers, so that -0.0 is not 0.0 and NaN is itself."""
    size = {2: torch.int16, 4: torch.int32, 8: torch.int64, 1: torch.int8}
    return tensor.contiguous().view(size[tensor.element_size()])

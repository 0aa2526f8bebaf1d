"""How activations are stored: float32, bfloat16, float16 or int8, and what that loses."""

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from steerkit.errors import ActivationError, MethodError
from steerkit.registry import suggest

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}
CHUNK = 2**20
"""Elements that are encoded at a time, so that what is temporary stays in the cache."""


def check_dtype(name: str) -> str:
    """The name itself, if activations can be stored so.

    Raises:
        MethodError: they cannot.
    """
    if name not in DTYPES:
        raise MethodError(f"activations are not stored as '{name}'; {suggest(name, DTYPES)}")
    return name


def encode(
    values: Float32[Tensor, "row d_model"], dtype: str
) -> tuple[Tensor, Float32[Tensor, "row"] | None, dict[str, float]]:
    """Stored values, the scale of each row (int8 alone), and bounds on the error.

    int8 divides each row by its largest element over 127. The bounds are what was measured on
    these very values, raised by the rounding of the measurement itself: `max_abs` of any
    element, in activation units, and `max_relative` of any row, |x - y| / |x|.

    Raises:
        ActivationError: values that float16 cannot hold.
    """
    if dtype == "float32":
        return values, None, {"max_abs": 0.0, "max_relative": 0.0}
    stored = torch.empty(values.shape, dtype=DTYPES[dtype])
    scale = torch.ones(len(values)) if dtype == "int8" else None
    largest = relative = 0.0
    step = max(1, CHUNK // max(1, values.shape[1]))
    for start in range(0, len(values), step):
        rows = slice(start, start + step)
        x = values[rows]
        if scale is not None:
            scale[rows] = x.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny * 127) / 127
            stored[rows] = (x / scale[rows, None]).round().clamp(-127, 127).to(torch.int8)
        else:
            stored[rows] = x.to(stored.dtype)
        gap = x - decode(stored[rows], None if scale is None else scale[rows])
        norm = torch.linalg.vector_norm(x, dim=1)
        lost = torch.linalg.vector_norm(gap, dim=1) / norm.masked_fill(norm == 0, 1)
        largest = max(largest, float(gap.abs().max()))
        relative = max(relative, float(lost.max()))
    if not largest < float("inf"):
        raise ActivationError(
            f"activations of up to {float(values.abs().max()):.3g} do not fit into {dtype}, which "
            f"ends at {torch.finfo(stored.dtype).max:.3g}; store them with dtype='bfloat16'"
        )
    return stored, scale, {"max_abs": largest * (1 + 1e-6), "max_relative": relative * (1 + 1e-4)}


def decode(
    stored: Tensor, scale: Float[Tensor, "row"] | None = None
) -> Float32[Tensor, "row d_model"]:
    """What was stored, as float32."""
    values = stored.to(torch.float32)
    return values if scale is None else values * scale[:, None]

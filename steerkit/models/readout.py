"""The linear part of a final norm, found by asking the norm itself."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def through_norm(
    norm: Callable[[Tensor], Tensor] | None, vectors: Float[Tensor, "k d_model"], like: Tensor
) -> Float[Tensor, "k d_model"]:
    """The norm's weight applied to directions, and for LayerNorm the centring; no scale.

    The norm is asked, not read: on a vector of alternating signs, whose mean is 0 and whose
    mean square is 1, it shows its weight, so that conventions such as Gemma's 1 + weight
    need no table. Float32, on the device of `like`, whose dtype the norm is fed in.
    """
    x = vectors.to(like.device, torch.float32)
    if norm is None:
        return x
    ones = torch.ones(1, 1, x.shape[1], dtype=like.dtype, device=like.device)
    signs = ones.clone()
    signs[..., 1::2] = -1
    # Half the difference of opposite inputs drops the bias.
    gain = ((norm(signs) - norm(-signs)).float() / 2 * signs.float()).flatten()
    level = ((norm(ones) - norm(-ones)).float() / 2).flatten()
    if float(level.abs().max()) < 1e-2 * float(gain.abs().max()):
        x = x - x.mean(1, keepdim=True)
    return x * gain

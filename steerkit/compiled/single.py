"""One row on a CPU: linear layers as products of a matrix and a vector.

A compiler fuses such a product into its neighbours and streams the weights once, where a library's
matrix product of one row is a call that packs its operands first: decoding one request takes a
quarter (width 256) to two thirds (width 2048) of the time (`benchmarks/decode.py`).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

_DTYPES = (torch.float32, torch.float64)
"""What the compiler multiplies in its own dtype; others it would convert element by element."""


def vectors_for_single_rows(copy: nn.Module) -> None:
    """Give the plain linear layers of a structural copy forwards that know single rows."""
    for module in copy.modules():
        if type(module) is nn.Linear and "forward" not in module.__dict__:
            module.forward = _forward(module)  # type: ignore[method-assign]


def _forward(module: nn.Linear) -> Any:
    def forward(x: Tensor) -> Tensor:
        weight, bias = module.weight, module.bias
        here = x.device.type == "cpu" and x.dtype == weight.dtype and x.dtype in _DTYPES
        if not here or x.numel() != weight.shape[1]:
            return linear(x, weight, bias)
        out = torch.mv(weight, x.reshape(-1))
        return (out if bias is None else out + bias).view(*x.shape[:-1], -1)

    return forward

"""Decoder layers of vLLM's models with the operation between them.

Their layers pass (hidden, residual) on, and the stream is their sum: the next layer's norm adds
the two before it does anything else. A boundary is the place before the first layer (0) or
after layer l (l + 1): `resid_post` of the layer before it and `resid_pre` of the one after are
the stream there, in this order.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from steerkit.errors import ModelError
from steerkit.models.blocks import layer_list
from steerkit.site import Site, Stream
from steerkit.vllm.operation import defined

ARCHITECTURES = frozenset(
    {
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "GPT2LMHeadModel",
    }
)
"""Whose layers are known to hand on either the stream or two summands of it.

Others may not: some hand on a residual that is already part of `hidden`."""

STREAMS: tuple[Stream, ...] = ("resid_pre", "resid_post")
"""Streams that the plugin reads and writes."""


def boundary(site: Site) -> int:
    """Where a site's stream is."""
    return site.layer + (site.stream == "resid_post")


def attach(model: nn.Module, n_layers: int) -> None:
    """Put the operation before, between and after a model's decoder layers.

    Forwards of its own modules are replaced, not hooked: graphs that are compiled later, at
    the first forward, hold the operation for certain.

    Raises:
        ModelError: layers that take or give something else than is known.
    """
    defined()
    _, layers = layer_list(model, n_layers)
    for number, layer in enumerate(layers):
        _wrap(layer, number)


def _wrap(layer: nn.Module, number: int) -> None:
    inner: Callable[..., Any] = layer.forward
    names = list(inspect.signature(inner).parameters)
    if "hidden_states" not in names:
        raise ModelError(
            f"layer {number} ({type(layer).__name__}) takes {', '.join(names)} and no "
            "hidden_states; this model cannot be steered in vLLM"
        )
    steer = torch.ops.steerkit.steer
    first = number == 0

    def given(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        if name in kwargs:
            return kwargs[name]
        place = names.index(name) if name in names else len(args)
        return args[place] if place < len(args) else None

    def forward(*args: Any, **kwargs: Any) -> Any:
        if first:
            steer(given("hidden_states", args, kwargs), given("residual", args, kwargs), 0)
        out = inner(*args, **kwargs)
        if isinstance(out, tuple):
            hidden, residual = out
            steer(hidden, residual, number + 1)
        else:
            steer(out, None, number + 1)
        return out

    layer.forward = forward

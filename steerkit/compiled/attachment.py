"""Programs inside the blocks of a copied network: forwards of its own modules, never hooks.

Hooks can be ignored by graphs that were compiled before them; a module's own forward cannot.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steerkit.models.hooks import Block, Visit, incoming, outgoing, with_outgoing
from steerkit.site import Site, Stream


def attach(blocks: Sequence[Block], visits: Mapping[Site, Visit]) -> None:
    """Run each visit where its stream is, whenever the blocks run.

    The same streams as those of eager hooks (`steerkit.models.hooks`), without a look at any
    value, so that all of it can stand in one graph.
    """
    by_layer: dict[int, dict[Stream, Visit]] = {}
    for site, visit in visits.items():
        by_layer.setdefault(site.layer, {})[site.stream] = visit
    for layer, wanted in by_layer.items():
        _attach(blocks[layer], wanted)


class _Held:
    """The stream that came into a block, until its attention has run."""

    resid_pre: Tensor | None = None


def _attach(block: Block, visits: Mapping[Stream, Visit]) -> None:
    held = _Held()
    mid = visits.get("resid_mid")
    attn = visits.get("attn_out")
    if attn is not None or mid is not None:
        assert block.attn is not None
        _after(block.attn, lambda out: _attention(out, block.scale, attn, mid, held))
    if (mlp := visits.get("mlp_out")) is not None:
        assert block.mlp is not None
        _after(block.mlp, lambda out: _scaled(out, block.scale, mlp))
    pre, post = visits.get("resid_pre"), visits.get("resid_post")
    if pre is not None or mid is not None:
        _before(block.module, pre, held if mid is not None else None)
    if post is not None:
        _after(block.module, post)


def _after(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    inner = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = inner(*args, **kwargs)
        return with_outgoing(out, change(outgoing(out)))

    module.forward = forward


def _before(module: nn.Module, change: Visit | None, held: _Held | None) -> None:
    inner = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        stream = incoming(args, kwargs)
        if change is not None:
            stream = change(stream)
            if args:
                args = (stream, *args[1:])
            else:
                kwargs = {**kwargs, "hidden_states": stream}
        if held is None:
            return inner(*args, **kwargs)
        held.resid_pre = stream
        out = inner(*args, **kwargs)
        # Nothing of a step may outlive it: it would become an output of the graph.
        held.resid_pre = None
        return out

    module.forward = forward


def _scaled(out: Tensor, scale: float, change: Visit) -> Tensor:
    if scale == 1.0:
        return change(out)
    given = out * scale
    changed = change(given)
    return torch.where(changed == given, out, changed / scale)


def _attention(
    out: Tensor, scale: float, attn: Visit | None, mid: Visit | None, held: _Held
) -> Tensor:
    def change(contribution: Tensor) -> Tensor:
        if attn is not None:
            contribution = attn(contribution)
        if mid is None:
            return contribution
        assert held.resid_pre is not None
        stream = held.resid_pre + contribution
        moved = mid(stream)
        # The residual itself moves only if the contribution to it does.
        return torch.where(moved == stream, contribution, contribution + (moved - stream))

    return _scaled(out, scale, change)

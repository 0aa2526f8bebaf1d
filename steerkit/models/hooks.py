"""Plain module hooks at the five streams of a block: live while a context is open, never after."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steerkit.errors import ModelError
from steerkit.site import Site, Stream

Visit = Callable[[Tensor], Tensor]
"""What happens at a site: the incoming stream in, the outgoing one out (the same object: as is)."""


@dataclass(frozen=True)
class Block:
    """One block of a network: where its streams can be read and written.

    `attn` and `mlp` are the modules whose outputs, times `scale`, are added to the stream
    (in post-norm blocks these are the norms after attention and MLP), or None where the
    block has no such contribution.
    """

    module: nn.Module
    attn: nn.Module | None = None
    mlp: nn.Module | None = None
    scale: float = 1.0


def incoming(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The stream among a block's inputs: its first argument, or `hidden_states`."""
    found = args[0] if args else kwargs["hidden_states"]
    assert isinstance(found, Tensor)
    return found


def outgoing(output: Any) -> Tensor:
    """The stream among a module's outputs: the output, or the first of a tuple."""
    found = output[0] if isinstance(output, tuple | list) else output
    assert isinstance(found, Tensor)
    return found


def with_outgoing(output: Any, stream: Tensor) -> Any:
    """The module's output with its stream replaced, of the same kind as before."""
    if isinstance(output, tuple | list):
        return type(output)((stream, *output[1:]))
    return stream


def nudged(stream: Tensor) -> Tensor:
    """Each token changed by a fixed wave about as large as itself: probes see whether it acts."""
    wave = torch.cos(torch.arange(stream.shape[-1], device=stream.device) * 0.7)
    size = stream.detach().float().abs().mean(-1, keepdim=True).clamp(min=1e-3)
    return stream + (wave * size).to(stream.dtype)


@contextmanager
def removed_after() -> Iterator[list[Any]]:
    """A list of hook handles that are all removed at the end, also after an exception."""
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def attached(blocks: Sequence[Block], visits: Mapping[Site, Visit]) -> Iterator[None]:
    """Hook the blocks so that each visit sees its stream once in a forward pass.

    Our hooks go before those that others registered, so that what they see is the stream
    after our interventions.
    """
    by_layer: dict[int, dict[Stream, Visit]] = {}
    for site, visit in visits.items():
        by_layer.setdefault(site.layer, {})[site.stream] = visit
    with removed_after() as handles:
        for layer, wanted in by_layer.items():
            handles.extend(_attach(blocks[layer], wanted))
        yield


def _attach(block: Block, visits: Mapping[Stream, Visit]) -> list[Any]:
    handles: list[Any] = []
    for stream, visit in visits.items():
        if stream == "resid_post":
            handles.append(block.module.register_forward_hook(_on_output(visit), prepend=True))
        elif stream == "resid_pre":
            handles.append(
                block.module.register_forward_pre_hook(
                    _on_input(visit), prepend=True, with_kwargs=True
                )
            )
        elif stream == "mlp_out":
            assert block.mlp is not None
            handles.append(block.mlp.register_forward_hook(_on_mlp(block, visit), prepend=True))
    if "attn_out" in visits or "resid_mid" in visits:
        handles.extend(_attach_attention(block, visits.get("attn_out"), visits.get("resid_mid")))
    return handles


def _on_input(visit: Visit) -> Callable[..., Any]:
    def on_input(module: nn.Module, args: Any, kwargs: Any) -> Any:
        stream = incoming(args, kwargs)
        changed = visit(stream)
        if changed is stream:
            return None
        if args:
            return (changed, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": changed}

    return on_input


def _on_output(visit: Visit) -> Callable[..., Any]:
    def on_output(module: nn.Module, args: Any, output: Any) -> Any:
        stream = output if isinstance(output, Tensor) else outgoing(output)
        changed = visit(stream)
        if changed is stream:
            return None
        return changed if stream is output else with_outgoing(output, changed)

    return on_output


def _on_mlp(block: Block, visit: Visit) -> Callable[..., Any]:
    def on_mlp(module: nn.Module, args: Any, output: Any) -> Any:
        out = outgoing(output)
        given = out if block.scale == 1.0 else out * block.scale
        return _contributed(block, output, given, visit(given))

    return on_mlp


def _attach_attention(block: Block, attn: Visit | None, mid: Visit | None) -> list[Any]:
    """Hooks at what attention adds, and at the stream that it makes of the block's input."""
    kept: dict[str, Tensor] = {}

    def keep_input(module: nn.Module, args: Any, kwargs: Any) -> None:
        kept["resid_pre"] = incoming(args, kwargs)

    def on_attention(module: nn.Module, args: Any, output: Any) -> Any:
        out = outgoing(output)
        given = contribution = out if block.scale == 1.0 else out * block.scale
        if attn is not None:
            contribution = attn(contribution)
        if mid is not None:
            # The residual itself moves only if the contribution to it does.
            resid_pre = kept.pop("resid_pre")
            stream = resid_pre + contribution
            moved = mid(stream)
            if torch.is_grad_enabled() and moved.requires_grad:
                # So that what was captured lies on the path that gradients take.
                contribution = moved - resid_pre
            elif moved is not stream:
                contribution = torch.where(
                    moved == stream, contribution, contribution + (moved - stream)
                )
        return _contributed(block, output, given, contribution)

    handles: list[Any] = []
    if mid is not None:
        handles.append(block.module.register_forward_pre_hook(keep_input, with_kwargs=True))
    assert block.attn is not None
    handles.append(block.attn.register_forward_hook(on_attention, prepend=True))
    return handles


def _contributed(block: Block, output: Any, given: Tensor, changed: Tensor) -> Any:
    """A module's output with its contribution changed; None where it was not."""
    if block.scale != 1.0 and torch.is_grad_enabled() and changed.requires_grad:
        # So that what was captured lies on the path that gradients take.
        return with_outgoing(output, changed / block.scale)
    if changed is given:
        return None
    if block.scale != 1.0:
        changed = torch.where(changed == given, outgoing(output), changed / block.scale)
    return with_outgoing(output, changed)


@contextmanager
def undisturbed(network: nn.Module, *, grad: bool = False) -> Iterator[None]:
    """Evaluation mode, without autograd unless asked; training flags are put back after.

    Raises:
        ModelError: a network compiled in place, whose hooks might be ignored.
    """
    training, compiled = _flags(network)
    if compiled:
        refuse_compiled(network)
    with torch.set_grad_enabled(grad):
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True


def _flags(network: nn.Module) -> tuple[list[nn.Module], bool]:
    """Modules that are in training, and whether any was compiled in place.

    One pass over the modules, shared ones as often as they occur: `modules()` takes ten times
    as long, and this is done in every call.
    """
    found: list[nn.Module | None] = [network]
    training: list[nn.Module] = []
    compiled = False
    for module in found:
        if module is None:
            continue
        own = module.__dict__
        if own["training"]:
            training.append(module)
        if own.get("_compiled_call_impl") is not None:
            compiled = True
        if own["_modules"]:
            found += own["_modules"].values()
    return training, compiled


def refuse_compiled(network: nn.Module) -> None:
    """Refuse modules compiled in place: hooks added after compilation can be ignored silently."""
    for name, module in network.named_modules():
        if getattr(module, "_compiled_call_impl", None) is not None:
            where = f"its module '{name}'" if name else "it"
            raise ModelError(
                f"{type(network).__name__} cannot be hooked: {where} was compiled in place "
                "(module.compile()), and hooks added later may be ignored; use a copy that is "
                "not compiled, or wrap what torch.compile(network) returns"
            )

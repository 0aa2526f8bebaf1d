"""Attention heads: what each puts into the projection that writes the attention output.

Nothing is taken from a module's name. One probe forward looks for the one projection whose
output is what attention adds to the stream, or what a post-norm makes that of; its input,
split evenly, is the heads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerkit.batch import Batch, Tokenized
from steerkit.errors import SiteError
from steerkit.models.engine import Engine
from steerkit.models.hooks import Visit, incoming, outgoing, removed_after

PROBE = (3, 10, 17, 24, 31)


@dataclass(frozen=True)
class Heads:
    """All attention heads of a layer, before the output projection; `heads@2` in text."""

    layer: int

    @property
    def order(self) -> tuple[float, float]:
        """Sort key among sites: after resid_pre, before attn_out."""
        return self.layer, 0.5

    def __str__(self) -> str:
        return f"heads@{self.layer}"


@dataclass(frozen=True)
class HeadPoint:
    """Where the heads of one layer can be read, written, and followed into the stream.

    Attributes:
        module: the projection whose input the heads are, or a hook point that puts them out.
        n_heads: query heads; of grouped-query attention all of them.
        into: what the projection makes of each head alone, without its bias:
            `[n n_heads d_head]` to `[n n_heads d_model]`, before `norm` and `scale`.
        constant: what it adds to their sum, `[d_model]`: its bias.
        norm: the post-norm between the projection and the stream, if there is one.
        scale: what the contribution is multiplied by before it is added to the stream.
    """

    module: nn.Module
    n_heads: int
    into: Callable[[Float[Tensor, "n head d_head"]], Float[Tensor, "n head d_model"]]
    constant: Float[Tensor, "d_model"]
    norm: nn.Module | None = None
    scale: float = 1.0
    output: bool = False
    """Whether the heads are what the module puts out, split already."""

    def attach(self, visit: Visit) -> Any:
        """Hook it: the visit sees `[batch pos n_heads d_head]`. Gives the handle."""
        if self.output:

            def on_output(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
                changed = visit(output)
                return None if changed is output else changed

            return self.module.register_forward_hook(on_output, prepend=True)

        def on_input(module: nn.Module, args: Any, kwargs: Any) -> Any:
            whole = args[0] if args else incoming(args, kwargs)
            split = whole.unflatten(-1, (self.n_heads, -1))
            changed = visit(split)
            if changed is split and not torch.is_grad_enabled():
                return None
            # With gradients what was seen has to lie on their path.
            return (changed.flatten(-2), *args[1:]), kwargs

        return self.module.register_forward_pre_hook(on_input, prepend=True, with_kwargs=True)


def find_heads(engine: Engine) -> tuple[HeadPoint, ...]:
    """The heads of every layer.

    Raises:
        SiteError: a network whose heads cannot be told apart, saying why.
    """
    if hasattr(engine, "blocks"):
        return _by_probe(engine)
    cfg = getattr(engine.network, "cfg", None)
    blocks = getattr(engine.network, "blocks", None)
    if cfg is None or blocks is None:
        raise SiteError(
            f"the attention heads of {engine.info.name} are unavailable: nothing is known "
            f"about the parts of a {type(engine.network).__name__}"
        )
    return tuple(_hooked(block.attn, block, cfg) for block in blocks)


def _hooked(attn: Any, block: Any, cfg: Any) -> HeadPoint:
    """The heads of a HookedTransformer's block: its own hook point and weights."""

    def into(z: Tensor) -> Tensor:
        return torch.einsum("nhd,hdm->nhm", z, attn.W_O)

    post = block.ln1_post if getattr(cfg, "use_normalization_before_and_after", False) else None
    bias = attn.b_O.detach()
    return HeadPoint(attn.hook_z, int(cfg.n_heads), into, bias, norm=post, output=True)


def _by_probe(engine: Any) -> tuple[HeadPoint, ...]:
    config, name = engine.config, engine.info.name
    n_heads = getattr(config, "num_attention_heads", None)
    if not isinstance(n_heads, int):
        raise SiteError(
            f"the attention heads of {name} are unavailable: its config does not give one "
            f"number of heads for all layers (num_attention_heads is {n_heads!r})"
        )
    size = getattr(config, "head_dim", None) or engine.info.d_model // n_heads
    widths = {n_heads * d for d in (size, getattr(config, "v_head_dim", None)) if d}
    seen: list[dict[nn.Module, tuple[Tensor, Tensor]]] = [{} for _ in engine.blocks]
    added: list[tuple[Tensor, Tensor]] = []

    def recording(record: dict[nn.Module, tuple[Tensor, Tensor]]) -> Any:
        def on_output(module: nn.Module, args: Any, output: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                record[module] = args[0].detach(), output.detach()

        return on_output

    def on_attention(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        out = outgoing(output).detach()
        added.append((out, out if given is None else given.detach()))

    tokens = tuple(token % engine.info.d_vocab for token in PROBE)
    probe = Batch.collate([Tokenized(tokens)], pad_id=0, device=engine.device)
    with engine.turns.taken(), engine.undisturbed(), removed_after() as handles:
        for block, record in zip(engine.blocks, seen, strict=True):
            if block.attn is None:
                raise SiteError(
                    f"the attention heads of {name} are unavailable: its blocks do not expose "
                    "what attention adds to the stream"
                )
            for module in block.module.modules():
                if getattr(getattr(module, "weight", None), "ndim", 0) == 2:
                    handles.append(module.register_forward_hook(recording(record)))
            handles.append(block.attn.register_forward_hook(on_attention, with_kwargs=True))
        engine.forward(probe, "last")
    points = []
    for layer, (block, record) in enumerate(zip(engine.blocks, seen, strict=True)):
        out, given = added[layer]
        found = [
            (module, torch.equal(made, out))
            for module, (taken, made) in record.items()
            if taken.ndim == 3
            and taken.shape[-1] in widths
            and (torch.equal(made, out) or torch.equal(made, given))
        ]
        if not found:
            raise SiteError(
                f"the attention heads of {name} are unavailable: no projection of layer {layer} "
                f"takes {n_heads} heads x {size} and gives what attention adds to the stream"
            )
        # A wrapper around a projection is called with the same input: the inner one has both.
        module, last = found[0]
        norm = None if last else block.attn
        constant = _nothing(module, record[module][0])
        points.append(
            HeadPoint(module, n_heads, _alone(module, constant), constant, norm, block.scale)
        )
    return tuple(points)


def _nothing(projection: nn.Module, like: Tensor) -> Float[Tensor, "d_model"]:
    """What a projection makes of zeros."""
    with torch.no_grad():
        made: Tensor = projection(torch.zeros_like(like[:1, :1]))
    return made[0, 0]


def _alone(projection: nn.Module, constant: Tensor) -> Callable[[Tensor], Tensor]:
    """The projection of each head with the others at zero, less its bias."""

    def into(z: Tensor) -> Tensor:
        n_heads = z.shape[1]
        own = torch.eye(n_heads, dtype=z.dtype, device=z.device)[None, :, :, None] * z[:, None]
        return projection(own.flatten(-2)) - constant

    return into

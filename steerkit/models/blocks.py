"""Find a network's blocks and the modules that write to its residual stream.

Nothing is taken from a module's name alone. One probe forward records what every module
inside a block puts out; the attention and MLP contributions are the two outputs that
satisfy the additive identity resid_post = resid_pre + attn_out + mlp_out. Post-norm blocks
(Gemma 2 and 3, OLMo 2) need no special case: there the norms' outputs satisfy it.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from steerkit.errors import HookError, ModelError
from steerkit.models.families import FAMILIES, Family
from steerkit.models.hooks import Block, Visit, incoming, nudged, outgoing, removed_after
from steerkit.site import STREAMS, Site, Stream

PROBE_LENGTHS = (5, 3)
"""Real tokens in the two left-padded rows of the probe."""


def layer_list(network: nn.Module, n_layers: int) -> tuple[nn.Module, list[nn.Module]]:
    """The module that owns the decoder's blocks, and the list of them."""
    found = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == n_layers
        and not any(word in name for word in ("vision", "visual", "audio", "encoder."))
    ]
    if not found:
        raise ModelError(
            f"{type(network).__name__} has no list of {n_layers} blocks (its "
            "num_hidden_layers); only decoder-only transformers can be wrapped"
        )
    # Lists inside blocks (experts) lie deeper than the list of blocks.
    name, layers = min(found, key=lambda item: item[0].count("."))
    owner = network.get_submodule(name.rpartition(".")[0])
    if len({id(block) for block in layers}) != n_layers:
        raise HookError(
            f"{type(network).__name__} runs one block at several layers (shared weights), so "
            "a hook on it would fire several times a pass; such models cannot be wrapped"
        )
    return owner, list(layers)


def probe_inputs(d_vocab: int, device: torch.device) -> dict[str, Tensor]:
    """A tiny left-padded batch of fixed tokens."""
    width = max(PROBE_LENGTHS)
    tokens = (torch.arange(len(PROBE_LENGTHS) * width) * 7 + 3) % d_vocab
    mask = torch.stack([torch.arange(width) >= width - n for n in PROBE_LENGTHS])
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    return {
        "input_ids": tokens.view(-1, width).to(device),
        "attention_mask": mask.long().to(device),
        "position_ids": positions.to(device),
    }


def find_blocks(
    network: nn.Module,
    layers: Sequence[nn.Module],
    *,
    model_type: str,
    config: Any,
    inputs: Mapping[str, Any],
) -> tuple[Block, ...]:
    """Every block with its two contributions, by one probe forward.

    Raises:
        ModelError: where a block's parts cannot be told apart.
        HookError: where a block did not run exactly once.
    """
    family = FAMILIES.get(model_type, Family())
    scale = float(getattr(config, family.scale)) if family.scale else 1.0
    records = [_Record() for _ in layers]
    with removed_after() as handles:
        for block, record in zip(layers, records, strict=True):
            handles.extend(record.attach(block))
        network(**inputs)
    real = inputs["attention_mask"].bool()
    return tuple(
        record.block(block, real, family, scale, i)
        for i, (block, record) in enumerate(zip(layers, records, strict=True))
    )


class _Record:
    """What one block's modules did in the probe."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.inner: list[tuple[str, nn.Module, Tensor]] = []

    def attach(self, block: nn.Module) -> list[Any]:
        def on_input(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.inputs.append(incoming(args, kwargs).detach().clone())

        def on_output(module: nn.Module, args: Any, output: Any) -> None:
            self.outputs.append(outgoing(output).detach().clone())

        handles = [
            block.register_forward_pre_hook(on_input, with_kwargs=True),
            block.register_forward_hook(on_output),
        ]
        for name, module in block.named_modules():
            if name:
                handles.append(module.register_forward_hook(self._inner(name)))
        return handles

    def _inner(self, name: str) -> Any:
        def on_inner(module: nn.Module, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple | list) and output else output
            if isinstance(first, Tensor) and first.shape == self.inputs[-1].shape:
                self.inner.append((name, module, first.detach().clone()))

        return on_inner

    def block(
        self, module: nn.Module, real: Tensor, family: Family, scale: float, layer: int
    ) -> Block:
        if len(self.inputs) != 1 or len(self.outputs) != 1:
            raise HookError(
                f"block {layer} ({type(module).__name__}) ran {len(self.inputs)} times in one "
                "forward pass, expected once"
            )
        real = real.to(self.inputs[0].device)
        pre, post = self.inputs[0][real], self.outputs[0][real]
        if pre.shape != post.shape:
            raise ModelError(
                f"block {layer} ({type(module).__name__}) takes a stream of shape "
                f"{tuple(pre.shape)} and gives {tuple(post.shape)}; they must agree"
            )
        if not (pre.isfinite().all() and post.isfinite().all()):
            raise ModelError(
                f"block {layer} ({type(module).__name__}) gives NaN or infinite activations in a "
                f"probe forward; check the weights, or load the model in another dtype than "
                f"{str(post.dtype).removeprefix('torch.')}"
            )
        if family.attn:
            attn, mlp = module.get_submodule(family.attn), module.get_submodule(family.mlp)
            return Block(module, attn, mlp, scale)
        # A module that ran twice is no single contribution.
        runs = [name for name, _, _ in self.inner]
        once = [entry for entry in self.inner if runs.count(entry[0]) == 1]
        pairs = [
            (residue(pre, parts, post), a, b)
            for a, b in combinations(once, 2)
            if identity_holds(pre, parts := (scale * a[2][real], scale * b[2][real]), post)
        ]
        if not pairs:
            return Block(module)
        # In half precision rounding may hide what is missing, so the closest pair counts. Of
        # modules that put out the same (a dropout after a projection) the outermost does.
        closest = min(error for error, _, _ in pairs)
        _, first, second = min(
            (pair for pair in pairs if pair[0] <= closest * (1 + 1e-9)),
            key=lambda pair: pair[1][0].count(".") + pair[2][0].count("."),
        )
        if "att" in second[0].lower() and "att" not in first[0].lower():
            first, second = second, first
        return Block(module, first[1], second[1], scale)


def identity_holds(start: Tensor, parts: Sequence[Tensor], end: Tensor) -> bool:
    """Whether start + sum(parts) = end, element by element, up to rounding in their dtype."""
    eps = torch.finfo(end.dtype).eps
    total, size = start.double(), start.abs().double()
    for part in parts:
        total = total + part.double().to(total.device)
        size = size + part.abs().double().to(total.device)
    return bool(((total - end.double()).abs() <= 4 * eps * size + 1e-30).all())


def residue(start: Tensor, parts: Sequence[Tensor], end: Tensor) -> float:
    """Mean of |start + sum(parts) - end| relative to each element's own size."""
    total, size = start.double(), start.abs().double()
    for part in parts:
        total = total + part.double().to(total.device)
        size = size + part.abs().double().to(total.device)
    return float(((total - end.double()).abs() / (size + 1e-30)).mean())


class _Enough(Exception):
    """The block that a probe is about has run."""


def prove_streams(
    name: str,
    attach: Callable[[Mapping[Site, Visit]], AbstractContextManager[None]],
    forward: Callable[[], Any],
    real: Tensor,
    *,
    n_layers: int,
    parts: bool,
) -> tuple[Stream, ...]:
    """The streams that a network has, each proven live by moving it in a probe forward.

    `parts` says whether its blocks have separate attention and MLP contributions. Moving
    attn_out moves mlp_out in a sequential block and leaves it in a parallel one, which has
    no resid_mid.

    Raises:
        ModelError: a stream that does not act as its definition says.
        HookError: a hook that did not fire once.
    """
    names: tuple[Stream, ...] = ("resid_pre", "resid_post")
    if parts:
        names = ("resid_pre", "attn_out", "mlp_out", "resid_post")

    def run(layer: int, moved: Site | None) -> dict[Site, Tensor]:
        seen: dict[Site, Tensor] = {}
        fired = {Site(layer, stream): 0 for stream in names}

        def visiting(site: Site) -> Visit:
            def visit(stream: Tensor) -> Tensor:
                fired[site] += 1
                if site == moved:
                    stream = nudged(stream)
                seen[site] = stream.detach()[real.to(stream.device)].clone()
                if site == Site(layer):  # the block's output: later ones say nothing of it
                    raise _Enough
                return stream

            return visit

        with attach({site: visiting(site) for site in fired}), suppress(_Enough):
            forward()
        wrong = ", ".join(f"{site} {n} times" for site, n in fired.items() if n != 1)
        if wrong:
            raise HookError(f"{name}: in one probe forward hooks fired {wrong}, expected once each")
        return seen

    def check_identity(layer: int, seen: Mapping[Site, Tensor]) -> None:
        pre, attn, mlp, post = (seen[Site(layer, stream)] for stream in names)
        if not identity_holds(pre, (attn, mlp), post):
            raise ModelError(
                f"{name}: resid_pre + attn_out + mlp_out is not resid_post at layer {layer}, so "
                "its streams cannot be told apart; this architecture cannot be wrapped as it is"
            )

    parallel = False
    for layer in sorted({0, n_layers // 2, n_layers - 1}):
        plain = run(layer, None)
        if parts:
            check_identity(layer, plain)
        for stream in names[:-1]:
            moved = run(layer, Site(layer, stream))
            if torch.equal(moved[Site(layer)], plain[Site(layer)]):
                raise ModelError(
                    f"{name}: writing {stream}@{layer} does not move the block's output, so "
                    "steering there would do nothing; this architecture cannot be wrapped as it is"
                )
            if parts:
                check_identity(layer, moved)
            if stream == "attn_out":
                mlp = Site(layer, "mlp_out")
                parallel = parallel or torch.equal(moved[mlp], plain[mlp])
    if not parts:
        return names
    return tuple(s for s in STREAMS if not (parallel and s == "resid_mid"))

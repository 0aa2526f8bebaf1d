"""Which parameters write the residual stream: found by their gradients, not by their names.

A parameter W with an output axis of width d_model writes a contribution c directly if
c = sum_a g(t, a) W[a, :] + ..., where g does not depend on W. Then, and only then, projecting
W projects its part of c. For weights v = s r^T over tokens and width the gradient of
sum(v * c) is an outer product with r on that axis; for every other parameter (queries, norms,
routers, earlier projections) it is not. Since c is linear in its writers, the sum of
<gradient, W> over them is sum(v * c) itself: where it falls short, something else writes too
(a post-norm, a fixed table) and no edit of these weights is exact.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steerkit.batch import Batch, Tokenized
from steerkit.errors import InterventionError
from steerkit.models import LanguageModel
from steerkit.models.hooks import removed_after
from steerkit.site import Site, sites_of

ROWS, COLUMNS = 8, 16
"""Prompts and tokens of a probe of random tokens: enough to reach most experts."""

DRAWS = 4
"""Random weights a contribution: by chance one scalar may come out explained, four do not."""

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Of the two tests above, relative; half precision has `HALF_TOLERANCE`."""
HALF_TOLERANCE = 5e-2


@dataclass(frozen=True)
class Writer:
    """One parameter that writes the stream.

    Attributes:
        name: the parameter's name in the network.
        axis: which of its axes runs over d_model.
        site: the contribution it writes: resid_pre@0, attn_out@l or mlp_out@l.
        norm: name of the norm between it and the stream, "" where there is none.
    """

    name: str
    axis: int
    site: Site
    norm: str = ""


def contributions(model: LanguageModel) -> tuple[Site, ...]:
    """The sites whose sum is the stream: the embedding and each block's two contributions.

    Raises:
        InterventionError: blocks whose attention and MLP contributions are not exposed.
    """
    info = model.info
    if "attn_out" not in info.streams or "mlp_out" not in info.streams:
        raise InterventionError(
            f"the blocks of {info.name} ({info.model_type}) do not expose attn_out and mlp_out, "
            "so what writes its stream cannot be told apart; use run-time Ablate instead"
        )
    return (Site(0, "resid_pre"), *sites_of(None, ("attn_out", "mlp_out"), info.n_layers))


def probe_batch(model: LanguageModel, seed: int) -> Batch:
    """Random tokens, without padding and without the padding token (whose row has no gradient)."""
    draw = torch.Generator().manual_seed(seed)
    pad = model.engine.text.pad_id
    width = min(COLUMNS, model.info.n_ctx)
    tokens = torch.randint(0, model.info.d_vocab, (ROWS, width), generator=draw)
    tokens = torch.where(tokens == pad, (tokens + 1) % model.info.d_vocab, tokens)
    rows = [Tokenized(tuple(row)) for row in tokens.tolist()]
    return Batch.collate(rows, pad_id=pad, device=model.engine.device)


def find_writers(
    model: LanguageModel, *, through_norms: bool = False, seed: int = 0
) -> tuple[Writer, ...]:
    """Every parameter that writes the stream, in the order of the contributions.

    Gradients are taken, never stored; training flags are put back.

    Args:
        model: a plain Hugging Face model.
        through_norms: where a norm stands between the projections and the stream (Gemma 2
            and 3, OLMo 2), name the projections and the norm instead of refusing.
        seed: of the probe's tokens and weights.

    Raises:
        InterventionError: a contribution that its direct writers do not explain.
    """
    sites = contributions(model)
    network = model.network
    batch = probe_batch(model, seed)
    draw = torch.Generator().manual_seed(seed + 1)
    found: list[Writer] = []
    silent: list[tuple[str, Tensor, Site]] = []
    # One call at a time: another thread must not see the gradient flags.
    with model.engine.turns.taken(), torch.inference_mode(False), _differentiable(network):
        before, streams = _streams(model, batch, sites)
        for site in sites:
            own = _parameters_of(model, site)
            writers, quiet, gap = _writers(streams[site], own, site, draw)
            dtype = streams[site].dtype
            if gap > tolerance(dtype) and site in before and through_norms:
                norm, stream = before[site]
                inner, more, gap = _writers(stream, own, site, draw, norm=norm)
                # What the norm itself adds (a bias) stays; its weight is no writer.
                writers, quiet = writers + inner, quiet + more
            if gap > tolerance(dtype):
                raise InterventionError(_unexplained(model, site, writers, gap, site in before))
            found += writers
            silent += quiet
    return tuple(found + _siblings(found, silent))


def tolerance(dtype: torch.dtype) -> float:
    """How far rounding may take the two tests in a dtype."""
    return TOLERANCE.get(dtype, HALF_TOLERANCE)


@contextmanager
def _differentiable(network: nn.Module) -> Iterator[None]:
    """Every floating-point parameter takes gradients; flags are put back after."""
    frozen = [p for p in network.parameters() if not p.requires_grad and p.is_floating_point()]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _streams(
    model: LanguageModel, batch: Batch, sites: Sequence[Site]
) -> tuple[dict[Site, tuple[str, Tensor]], Mapping[Site, Tensor]]:
    """Contributions with their graph; and what goes into the modules that give them, if norms."""
    names = {id(module): name for name, module in model.network.named_modules()}
    inputs: dict[Site, tuple[str, Tensor]] = {}

    def keep(site: Site) -> Any:
        def on_input(module: nn.Module, args: tuple[Any, ...]) -> None:
            inputs[site] = (names[id(module)], args[0])

        return on_input

    with removed_after() as handles:
        for layer, block in enumerate(model.engine.blocks):  # type: ignore[attr-defined]
            parts = {Site(layer, "attn_out"): block.attn, Site(layer, "mlp_out"): block.mlp}
            for site, module in parts.items():
                if module is not None and _is_norm(module):
                    handles.append(module.register_forward_pre_hook(keep(site)))
        # Copies: a network may go on to add to a contribution in place (Falcon does).
        run = model.run(
            batch, sites=sites, logits="none", grad=True, pool=lambda stream, _: stream.clone()
        )
    return inputs, run.streams


def _is_norm(module: nn.Module) -> bool:
    """Whether a module has parameters, and nothing but vectors."""
    parameters = list(module.parameters())
    return bool(parameters) and all(p.ndim == 1 for p in parameters)


def _parameters_of(model: LanguageModel, site: Site) -> list[tuple[str, Tensor]]:
    """The parameters that may write a contribution: of its block, or outside all blocks."""
    blocks = [block.module for block in model.engine.blocks]  # type: ignore[attr-defined]
    if site.stream == "resid_pre":
        inside = {id(p) for block in blocks for p in block.parameters()}
        chosen = {id(p) for p in model.network.parameters()} - inside
    else:
        chosen = {id(p) for p in blocks[site.layer].parameters()}
    return [
        (name, p)
        for name, p in model.network.named_parameters()
        if id(p) in chosen and p.is_floating_point()
    ]


def _writers(
    stream: Tensor,
    parameters: Sequence[tuple[str, Tensor]],
    site: Site,
    draw: torch.Generator,
    *,
    norm: str = "",
) -> tuple[list[Writer], list[tuple[str, Tensor, Site]], float]:
    """Writers of a stream, parameters without any gradient, and the share left unexplained."""
    found: dict[str, Writer] = {}
    silent: list[tuple[str, Tensor, Site]] = []
    gaps = []
    for number in range(DRAWS):
        reads = torch.randn(stream.shape[-1], generator=draw).to(stream.device)
        tokens = torch.randn(stream.shape[:-1], generator=draw).to(stream.device)
        weights = (tokens[..., None] * reads).to(stream.dtype)
        objective = (weights.double() * stream.double()).sum()
        tried = [(n, p) for n, p in parameters if number == 0 or n in found]
        if not tried:
            return [], silent, 1.0
        gradients = torch.autograd.grad(
            objective, [p for _, p in tried], retain_graph=True, allow_unused=True
        )
        explained = 0.0
        for (name, parameter), gradient in zip(tried, gradients, strict=True):
            if gradient is None or not bool(gradient.any()):
                silent.append((name, parameter, site))
                continue
            if number == 0:
                axis = _outer_axis(gradient, reads)
                if axis is None:
                    continue
                found[name] = Writer(name, axis, site, norm)
            explained += float((gradient.double() * parameter.detach().double()).sum())
        gaps.append(abs(float(objective.detach()) - explained))
    return (
        list(found.values()),
        silent,
        max(gaps) / max(float(stream.detach().double().norm()), 1e-30),
    )


def _outer_axis(gradient: Tensor, reads: Tensor) -> int | None:
    """The axis on which a gradient is an outer product with `reads`, if there is one."""
    for axis, size in enumerate(gradient.shape):
        if size != len(reads):
            continue
        rows = gradient.movedim(axis, -1).reshape(-1, size).float()
        shape = rows @ reads / (reads @ reads)
        rest = (rows - shape[:, None] * reads).norm() / rows.norm()
        if float(rest) <= tolerance(gradient.dtype):
            return axis
    return None


def _siblings(found: Sequence[Writer], silent: Sequence[tuple[str, Tensor, Site]]) -> list[Writer]:
    """Parameters that no probe token reached (unused experts), by a sibling that one reached."""
    known = {(_pattern(w.name), w.site.stream): w for w in found}
    named = {w.name for w in found}
    more: dict[str, Writer] = {}
    for name, _, site in silent:
        like = known.get((_pattern(name), site.stream))
        if like is not None and name not in named:
            norm = re.sub(r"\d+", str(site.layer), like.norm, count=1)
            more[name] = Writer(name, like.axis, site, norm)
    return list(more.values())


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _unexplained(
    model: LanguageModel, site: Site, writers: Sequence[Writer], gap: float, normed: bool
) -> str:
    names = ", ".join(w.name for w in writers) or "no parameter"
    why = (
        "its blocks are post-norm: the norm's weight multiplies after the projection, so no edit "
        "of the projection is ablation. Use run-time Ablate, or approximate=True, which takes "
        "the direction out of the stream and measures how far the logits are from ablation"
        if normed
        else "a norm, a fixed table, or quantised or shared weights stand between the parameters "
        "and the stream. Use run-time Ablate instead"
    )
    return (
        f"{model.info.name} ({model.info.model_type}) has no weights whose projection is ablation: "
        f"{site} is written directly by {names}, which leaves {gap:.2g} of it unexplained; {why}"
    )

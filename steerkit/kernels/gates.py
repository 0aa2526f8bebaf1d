"""Gates and latches in plain torch: which terms are open, decided without waiting for a device.

A register is an int8 for each row: 0 until its latch is decided, then 1 (open) or -1 (closed).
"""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerkit.kernels.stack import Stack
from steerkit.program import Gate, Group, Latch


@dataclass(frozen=True, eq=False)
class TokenGates:
    """Conditions on the h that the terms of a group read, at the same token."""

    read: Float[Tensor, "*row term d_model"]
    threshold: Float[Tensor, "*row_1 term"]
    above: Bool[Tensor, "*row_1 term"]
    cosine: Bool[Tensor, "*row_1 term"]
    free: Bool[Tensor, "*row_1 term"]
    """Terms without such a gate."""
    any_cosine: bool

    def open(self, x: Float[Tensor, "row pos d_model"]) -> Bool[Tensor, "row pos term"]:
        """Which terms are open at which tokens."""
        x = x.detach()
        level = x @ self.read.mT
        if self.any_cosine:
            level = torch.where(self.cosine, level / _size(x), level)
        return self.free | torch.where(self.above, level >= self.threshold, level < self.threshold)


@dataclass(frozen=True, eq=False)
class LatchGates:
    """Conditions that registers hold."""

    names: tuple[str, ...]
    which: Int[Tensor, "*row term"]
    """Counts into `names`; -1 for terms without such a gate."""
    alone: bool = False
    """Whether one latch gates every term of every row: nothing has to be looked up then."""

    def open(
        self,
        latches: Mapping[str, Int[Tensor, "row"]],
        absolute: Int[Tensor, "row pos"],
        prompt_len: Int[Tensor, "row"],
    ) -> Bool[Tensor, "row pos term_or_1"]:
        """Which terms are open at which tokens: never before the last token of the prompt."""
        if self.alone:
            (name,) = self.names
            if name not in latches:
                return torch.zeros_like(absolute, dtype=torch.bool)[..., None]
            opened = latches[name].to(absolute.device) > 0
            return (opened[:, None] & (absolute >= prompt_len[:, None] - 1))[..., None]
        every = absolute.new_zeros((len(self.names) + 1, *absolute.shape), dtype=torch.bool)
        since = absolute >= prompt_len[:, None] - 1
        for i, name in enumerate(self.names):
            if name in latches:
                every[i] = since & (latches[name].to(absolute.device) > 0)[:, None]
        every[-1] = True
        if self.which.ndim == 1:
            return every[self.which].movedim(0, -1)
        here = torch.arange(absolute.shape[0], device=absolute.device)
        return every[self.which, here[:, None]].movedim(1, -1)


@dataclass(frozen=True, eq=False)
class Gates:
    """The gates of one group, of either kind."""

    token: TokenGates | None
    latch: LatchGates | None


def gates_of(groups: Sequence[Group | None], stack: Stack) -> Gates | None:
    """The gates of the i-th groups of all rows; None where there are none."""
    every = [gate for group in groups if group is not None for gate in group.gates if gate]
    if not every:
        return None
    names = tuple(sorted({gate.latch for gate in every if gate.latch}))
    return Gates(
        _token_gates([gate for gate in every if not gate.latch], stack),
        _latch_gates(groups, names, stack) if names else None,
    )


def _token_gates(every: Sequence[Gate], stack: Stack) -> TokenGates | None:
    if not every:
        return None

    def gates(group: Group) -> list[Gate | None]:
        """Those of the same token."""
        return [gate if gate and not gate.latch else None for gate in group.every_gate]

    def reads(group: Group) -> Tensor:
        zero = group.read.new_zeros(group.d_model, dtype=torch.float64)
        return torch.stack([gate.read.double() if gate else zero for gate in gates(group)])

    def flags(group: Group, name: str, value: object) -> Tensor:
        return torch.tensor(
            [gate is not None and getattr(gate, name) == value for gate in gates(group)]
        )

    return TokenGates(
        read=stack(reads),
        threshold=stack(
            lambda group: torch.tensor(
                [gate.threshold if gate else 0.0 for gate in gates(group)], dtype=torch.float64
            )
        ),
        above=stack(lambda group: flags(group, "above", True)).bool(),
        cosine=stack(lambda group: flags(group, "measure", "cosine")).bool(),
        free=stack(lambda group: torch.tensor([gate is None for gate in gates(group)]), 1).bool(),
        any_cosine=any(gate.measure == "cosine" for gate in every),
    )


def _latch_gates(
    groups: Sequence[Group | None], names: tuple[str, ...], stack: Stack
) -> LatchGates:
    which = torch.full((len(groups), stack.width), -1)
    for row, group in enumerate(groups):
        for term, gate in enumerate(group.gates if group is not None else ()):
            if gate and gate.latch:
                which[row, term] = names.index(gate.latch)
    alone = len(names) == 1 and bool((which == 0).all())
    return LatchGates(names, (which[0] if len(groups) == 1 else which).to(stack.device), alone)


def decide(
    latch: Latch,
    mine: Bool[Tensor, "row"],
    h: Float[Tensor, "row pos d_model"],
    absolute: Int[Tensor, "row pos"],
    prompt_len: Int[Tensor, "row"],
    registers: MutableMapping[str, Tensor],
    dtype: torch.dtype,
) -> None:
    """Write a latch's register where this pass holds the last token of a row's prompt.

    A register is written once; what a prompt that comes in chunks has summed up so far is
    kept beside it, under the latch's name and `/sum`, and begun anew at a row's first token.

    Args:
        latch: the condition.
        mine: the rows that it is about.
        h: the incoming stream of its site.
        absolute: position of each token in its own row; negative on padding.
        prompt_len: tokens of each row's prompt.
        registers: the registers of these requests, by the names of latches.
        dtype: what is computed in.
    """
    register = registers.get(latch.name)
    if register is None:
        register = torch.zeros_like(prompt_len, dtype=torch.int8)
    register = registers[latch.name] = register.to(h.device)
    # Looking is free on a CPU; an accelerator would have to be waited for.
    if h.device.type == "cpu" and not (absolute[:, :1] < prompt_len[:, None]).any():
        return
    last = absolute == prompt_len[:, None] - 1
    if latch.pooled == "last_prompt":
        row = torch.arange(h.shape[0], device=h.device)
        x = h.detach()[row, last.int().argmax(1)].to(dtype)
    else:
        x = _mean(latch.name, h.detach(), absolute, prompt_len, registers, dtype)
    condition = latch.condition
    level = x @ _read(latch, h.device, dtype)
    if condition.measure == "cosine":
        level = level / _size(x)[:, 0]
    opens = level >= condition.threshold if condition.above else level < condition.threshold
    now = last.any(1) & (register == 0) & mine
    registers[latch.name] = torch.where(now, opens.to(torch.int8) * 2 - 1, register)


@lru_cache(maxsize=1024)
def _read(latch: Latch, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "d_model"]:
    with torch.inference_mode(False):
        return latch.condition.read.to(device, dtype)


def _mean(
    name: str,
    h: Float[Tensor, "row pos d_model"],
    absolute: Int[Tensor, "row pos"],
    prompt_len: Int[Tensor, "row"],
    registers: MutableMapping[str, Tensor],
    dtype: torch.dtype,
) -> Float[Tensor, "row d_model"]:
    """The mean over the prompt, complete once the pass holds its last token."""
    prompt = (absolute >= 0) & (absolute < prompt_len[:, None])
    total = torch.where(prompt[..., None], h, h.new_zeros(())).sum(1, dtype=dtype)
    before = registers.get(f"{name}/sum")
    if before is not None:
        fresh = (absolute == 0).any(1, keepdim=True)
        total = torch.where(fresh, total, total + before.to(h.device))
    registers[f"{name}/sum"] = total
    return total / prompt_len[:, None]


def _size(x: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead 1"]:
    """|x|, above 0, so that the cosine of 0 is 0."""
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return size.clamp(min=torch.finfo(x.dtype).tiny)

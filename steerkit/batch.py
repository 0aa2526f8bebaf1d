"""What one forward pass is given: tokens, which of them are real, and where each row stands."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from steerkit.errors import InterventionError, PromptError
from steerkit.registry import suggest

Rule = Literal["all", "prompt", "last_prompt", "generated", "indices", "mask"]
RULES: tuple[Rule, ...] = ("all", "prompt", "last_prompt", "generated", "indices", "mask")


@dataclass(frozen=True)
class Tokenized:
    """One prompt as token ids, and the answer that is to be scored after it (may be empty)."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class Batch:
    """Left-padded token ids; answers, where there are any, are teacher-forced at the end.

    `rows` says which of the caller's prompts each row is, so that results of batches
    sorted by length can be put back in order.
    """

    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    prompt_len: Int[Tensor, "batch"]
    rows: Int[Tensor, "batch"]

    @classmethod
    def collate(
        cls,
        items: Sequence[Tokenized],
        *,
        pad_id: int,
        rows: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> "Batch":
        """Left-pad prompt + answer ids to a common width."""
        if not items:
            raise PromptError("a batch needs at least one prompt; got none")
        if any(not item.prompt for item in items):
            raise PromptError("a prompt came out as no tokens at all; give each prompt some text")
        width = max(len(item) for item in items)
        tokens = torch.full((len(items), width), pad_id, dtype=torch.long)
        mask = torch.zeros((len(items), width), dtype=torch.bool)
        for i, item in enumerate(items):
            tokens[i, width - len(item) :] = torch.tensor(item.prompt + item.answer)
            mask[i, width - len(item) :] = True
        return cls(
            tokens.to(device),
            mask.to(device),
            torch.tensor([len(item.prompt) for item in items], device=device),
            torch.tensor(list(rows) if rows is not None else range(len(items)), device=device),
        )

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def width(self) -> int:
        """Columns, padding included."""
        return self.tokens.shape[1]

    # Kept: one batch often runs under many views, and these cost more than a hook.
    @cached_property
    def absolute(self) -> Int[Tensor, "batch pos"]:
        """Position of each token in its own row, from 0; -1 on padding. Not to be written to."""
        # A tensor made under inference_mode could never be saved for a later backward pass.
        with torch.inference_mode(False):
            return (self.mask.long().cumsum(1) - 1).masked_fill(~self.mask, -1)

    @cached_property
    def position_ids(self) -> Int[Tensor, "batch pos"]:
        """What the model is given: absolute positions, with 0 on padding. Not to be written to.

        Always passed: learned position embeddings without them are wrong under padding.
        """
        with torch.inference_mode(False):
            return self.absolute.clamp(min=0)

    @cached_property
    def attention_mask(self) -> Int[Tensor, "batch pos"]:
        """What the model is given: 1 on tokens, 0 on padding. Not to be written to."""
        with torch.inference_mode(False):
            return self.mask.long()

    @cached_property
    def padded(self) -> bool:
        """Whether there is padding (an accelerator is waited for, once)."""
        return not bool(self.mask.all())

    def take(self, rows: Int[Tensor, "taken"]) -> "Batch":
        """These rows, in this order, as often as they are named."""
        return Batch(self.tokens[rows], self.mask[rows], self.prompt_len[rows], self.rows[rows])

    def repeated(self, times: int) -> "Batch":
        """The batch `times` over, block after block; `rows` still name the caller's prompts."""
        return self.take(torch.arange(len(self), device=self.rows.device).repeat(times))

    @property
    def answer_mask(self) -> Bool[Tensor, "batch pos"]:
        """True on the teacher-forced answer tokens."""
        return self.absolute >= self.prompt_len[:, None]

    @property
    def answer_width(self) -> int:
        """The longest answer of the batch, in tokens."""
        return int((self.mask.sum(1) - self.prompt_len).max())

    def state(self, slot: Sequence[int] | Tensor | int = 1) -> "RequestState":
        """The request state before the first token, every row (or each) at the given slot."""
        n = len(self)
        slots = torch.as_tensor(slot, device=self.tokens.device).long()
        if slots.ndim == 0:
            slots = slots.expand(n)
        if slots.shape != (n,):
            raise InterventionError(
                f"one slot per row: the batch has {n} rows, got {tuple(slots.shape)} slots"
            )
        return RequestState(
            prompt_len=self.prompt_len,
            position=self.mask.sum(1) - self.width,
            slot=slots,
            row=self.rows,
        )


@dataclass(frozen=True)
class RequestState:
    """Where each request of a batch stands; shared by every path that runs a model.

    `prompt_len` is frozen when the request is made. `position` is the absolute position of
    the next column: it starts at minus the row's padding, so negative means padding and a
    chunked prefill or a cached step needs no special case. `slot` is the row's program
    (0 = none) and `row` the caller's prompt it belongs to. `latches` are the registers that
    conditions on the prompt write once: by name an int8 a row, 0 until it is decided, then
    1 (open) or -1 (closed), and what a mean over a prompt that comes in chunks needs. All
    states of the same requests share them.
    """

    prompt_len: Int[Tensor, "batch"]
    position: Int[Tensor, "batch"]
    slot: Int[Tensor, "batch"]
    row: Int[Tensor, "batch"]
    latches: dict[str, Tensor] = field(default_factory=dict)

    def absolute(self, length: int) -> Int[Tensor, "batch length"]:
        """Absolute positions of the next `length` columns; -1 on padding."""
        steps = torch.arange(length, device=self.position.device)
        return (self.position[:, None] + steps).clamp(min=-1)

    def advanced(self, length: int) -> "RequestState":
        """The state after `length` more columns."""
        return replace(self, position=self.position + length)


@dataclass(frozen=True, eq=False)
class Positions:
    """Which tokens an intervention touches, in absolute positions of each row.

    `all`; `prompt`; `last_prompt` (the token before the answer starts); `generated` (the
    answer, teacher-forced or sampled); `indices` (from the prompt's start, or from its end
    when negative); `mask` (a boolean per prompt and absolute position). Padding is never
    touched. Resolved against each row's frozen `prompt_len`, so a rule means the same with
    and without a KV cache.
    """

    rule: Rule = "all"
    indices: tuple[int, ...] = ()
    mask: Bool[Tensor, "prompt pos"] | None = None

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise InterventionError(
                f"no position rule named '{self.rule}'; {suggest(str(self.rule), RULES)}"
            )
        if (self.rule == "indices") != bool(self.indices):
            raise InterventionError(
                "position indices and the rule 'indices' go together; "
                f"got rule '{self.rule}' with indices {self.indices}"
            )
        if (self.rule == "mask") != (self.mask is not None):
            raise InterventionError("a position mask and the rule 'mask' go together")
        if self.mask is not None and (self.mask.ndim != 2 or self.mask.dtype != torch.bool):
            raise InterventionError(
                "a position mask is boolean with one row per prompt and one column per absolute "
                f"position; got {self.mask.dtype} of shape {tuple(self.mask.shape)}"
            )

    @classmethod
    def of(cls, value: "Positions | str | int | Iterable[int] | Tensor") -> "Positions":
        """Read a rule's name, one index, several indices, or a boolean mask."""
        if isinstance(value, Positions):
            return value
        if isinstance(value, str):
            return cls(value)  # type: ignore[arg-type]
        if isinstance(value, Tensor):
            return cls("mask", mask=value.detach().clone())
        if isinstance(value, int):
            return cls("indices", indices=(value,))
        return cls("indices", indices=tuple(int(i) for i in value))

    def select(
        self,
        absolute: Int[Tensor, "batch length"],
        prompt_len: Int[Tensor, "batch"],
        row: Int[Tensor, "batch"],
    ) -> Bool[Tensor, "batch length"]:
        """True where the rule holds; False on padding (absolute < 0)."""
        real = absolute >= 0
        length = prompt_len[:, None]
        if self.rule == "all":
            return real
        if self.rule == "prompt":
            return real & (absolute < length)
        if self.rule == "last_prompt":
            return real & (absolute == length - 1)
        if self.rule == "generated":
            return real & (absolute >= length)
        if self.rule == "indices":
            chosen = torch.zeros_like(real)
            for index in self.indices:
                chosen = chosen | (absolute == (index if index >= 0 else length + index))
            return real & chosen
        return self._masked(absolute, row)

    def _masked(
        self, absolute: Int[Tensor, "batch length"], row: Int[Tensor, "batch"]
    ) -> Bool[Tensor, "batch length"]:
        assert self.mask is not None
        mask = self.mask.to(absolute.device)
        # A host check on purpose: a mask for other prompts must not steer silently.
        if int(row.max()) >= mask.shape[0]:
            raise InterventionError(
                f"the position mask has {mask.shape[0]} rows but prompt {int(row.max())} ran; "
                "give one row per prompt, in the order of the prompts"
            )
        inside = (absolute >= 0) & (absolute < mask.shape[1])
        picked = mask[row].gather(1, absolute.clamp(0, mask.shape[1] - 1))
        return inside & picked

    @property
    def _key(self) -> tuple[Rule, tuple[int, ...], int]:
        # Masks compare by identity: equal content is not worth a look at every element.
        return self.rule, self.indices, id(self.mask)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Positions) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __str__(self) -> str:
        return f"indices{list(self.indices)}" if self.rule == "indices" else self.rule


SPARE = 256
"""Padded tokens that a batch may always hold: too few to be worth another forward pass."""


def plan(lengths: Sequence[int], token_budget: int, *, max_padding: float = 1.0) -> list[list[int]]:
    """Group prompts of similar length so that no batch exceeds `token_budget` padded tokens.

    Returns index lists, longest first (so an out-of-memory shows at once). A single prompt
    longer than the budget gets a batch of its own.

    Args:
        lengths: tokens of each prompt.
        token_budget: tokens of a batch, padding included.
        max_padding: the fraction of a batch that may be padding, beyond `SPARE` tokens.
            One forward pass is cheaper with less padding in more batches; generation, which
            pays for every batch at every step, is not.
    """
    if token_budget < 1:
        raise PromptError(f"the token budget is at least 1; got {token_budget}")
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    real = 0
    for i in order:
        if batches:
            padded = lengths[batches[-1][0]] * (len(batches[-1]) + 1)
            padding = padded - real - lengths[i]
            if padded <= token_budget and padding <= max(SPARE, max_padding * padded):
                batches[-1].append(i)
                real += lengths[i]
                continue
        batches.append([i])
        real = lengths[i]
    return batches

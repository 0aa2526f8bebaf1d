"""Scores of whole prompts and answers along many directions, reduced inside the hook."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steerkit.batch import Batch, Tokenized
from steerkit.errors import MethodError, PromptError
from steerkit.prompts import Prompt
from steerkit.protocols import Model
from steerkit.registry import suggest
from steerkit.scoring import TOKEN_BUDGET, scored_batches, with_own_answers
from steerkit.site import Site
from steerkit.statistics import Floats

Tokens = Literal["prompt", "answer", "last"]
Reduce = Literal["max", "mean"]
TOKENS: tuple[Tokens, ...] = get_args(Tokens)
REDUCES: tuple[Reduce, ...] = get_args(Reduce)


@dataclass(frozen=True, eq=False)
class Reading:
    """Projections of prompts on k directions, over the tokens that count.

    Attributes:
        high: the largest, `[prompt k]`, activation units.
        low: the smallest.
        mean: the mean.
    """

    high: Floats
    low: Floats
    mean: Floats

    def along(self, reduce: Reduce) -> Floats:
        """The reduced projections, `[prompt k]`."""
        return self.high if reduce == "max" else self.mean

    def against(self, reduce: Reduce) -> Floats:
        """The same of the opposite directions: the largest of a negated score is its smallest."""
        return -self.low if reduce == "max" else -self.mean


def check_reading(tokens: str, reduce: str) -> None:
    """Refuse unknown rules.

    Raises:
        MethodError: naming the known ones.
    """
    for name, value, known in (("tokens", tokens, TOKENS), ("reduce", reduce, REDUCES)):
        if value not in known:
            raise MethodError(f"no {name}='{value}' of a monitor; {suggest(value, known)}")


def items_of(
    model: Model, prompts: Sequence[Prompt], tokens: Tokens, *, max_new_tokens: int
) -> list[Tokenized]:
    """Prompts as tokens; for `answer` with their own answers, or else the model's greedy ones.

    Raises:
        PromptError: an answer without tokens.
    """
    if tokens != "answer":
        return model.tokenize([p.with_answer("") for p in prompts])
    items = model.tokenize(prompts)
    bare = [i for i, p in enumerate(prompts) if not p.answer]
    if bare:
        said = model.generate([prompts[i] for i in bare], max_new_tokens=max_new_tokens)
        for i, item in zip(bare, with_own_answers(said), strict=True):
            items[i] = item
    empty = [i for i, item in enumerate(items) if not item.answer]
    if empty:
        raise PromptError(
            f"{len(empty)} prompts have an empty answer, such as "
            f"{prompts[empty[0]].text[:60]!r}; a monitor of answers needs one token at least"
        )
    return items


def leading_specials(model: Model, items: Sequence[Tokenized]) -> tuple[int, ...]:
    """Ids of special tokens that stand first in a prompt: the same state before every text."""
    first = sorted({item.prompt[0] for item in items})
    return tuple(i for i in first if model.decode([i]) == "")


def read(
    model: Model,
    items: Sequence[Tokenized],
    site: Site,
    units: Float[Tensor, "k d_model"],
    tokens: Tokens,
    leading: Sequence[int] = (),
    *,
    token_budget: int = TOKEN_BUDGET,
) -> Reading:
    """Project the tokens that count on every direction; nothing but the reductions is kept.

    `prompt` counts all tokens of the prompt but a leading special one; `answer` the states that
    answer tokens are written from, which are those that `watch` scores; `last` the last token of
    the prompt.
    """

    def pool(stream: Tensor, batch: Batch) -> Float[Tensor, "batch 3 k"]:
        read = stream.to(torch.float32) @ units.T.to(stream.device, torch.float32)
        counts = _counts(batch, tokens, leading).to(stream.device)[..., None]
        high = read.masked_fill(~counts, -torch.inf).amax(1)
        low = read.masked_fill(~counts, torch.inf).amin(1)
        # `where`, not a product: padding may hold NaN.
        mean = torch.where(counts, read, 0.0).sum(1) / counts.sum(1)
        return torch.stack([high, low, mean], 1)

    out = torch.empty(3, len(items), len(units), dtype=torch.float64)
    for batch in scored_batches(model, list(items), token_budget=token_budget):
        found = model.run(batch, sites=[site], pool=pool, logits="none").streams[site]
        out[:, batch.rows.cpu()] = found.double().cpu().movedim(1, 0)
    high, low, mean = out.numpy()
    return Reading(high, low, mean)


def _counts(batch: Batch, tokens: Tokens, leading: Sequence[int]) -> Bool[Tensor, "batch pos"]:
    at, length = batch.absolute, batch.prompt_len[:, None]
    if tokens == "last":
        return at == length - 1
    if tokens == "answer":
        return (at >= length - 1) & (at < batch.mask.sum(1, keepdim=True) - 1)
    special = torch.isin(batch.tokens, torch.tensor(list(leading), device=batch.tokens.device))
    return batch.mask & (at < length) & ~(special & (at == 0) & (length > 1))

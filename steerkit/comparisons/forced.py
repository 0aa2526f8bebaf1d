"""Two models read the same answers: ranks, exact KL and entropy at every answer token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerkit.batch import Batch, Tokenized
from steerkit.errors import ActivationError, PromptError
from steerkit.protocols import Model
from steerkit.scoring import TOKEN_BUDGET, divergence, scored_batches
from steerkit.statistics import Estimate, Floats, cluster_mean, percentiles, row_draws

MARGINAL = 3
"""Ranks 2 to this are marginal, beyond it shifted."""
AT_ONCE = 2**22
"""Entries of predictions that are in float64 at a time, beside the logits themselves."""
Where = Bool[np.ndarray, "token"]


@dataclass(frozen=True, eq=False)
class ForcedTokens:
    """Answer tokens as two models see them, one entry a token; `other` judges `own`'s answers.

    Attributes:
        prompt: which prompt.
        position: place in the answer, from 0.
        token: its id.
        text: the token decoded.
        kind: its class (`token_kinds`).
        groups: of its prompt.
        rank: under the other model, from 1: 1 + how many logits are above the token's.
        own_rank: under the model whose answer it is; 1 for greedy answers but for near-ties.
        ties: other tokens with the same logit under the other model (half precision has many).
        kl: KL(own || other) over the whole vocabulary, in nats.
        entropy: of the other model's prediction, in nats.
        beyond: probability, under the other model, of all tokens of rank above 3: how often
            its own samples would count as shifted.
    """

    prompt: Int[np.ndarray, "token"]
    position: Int[np.ndarray, "token"]
    token: Int[np.ndarray, "token"]
    text: tuple[str, ...]
    kind: tuple[str, ...]
    groups: tuple[str, ...]
    rank: Int[np.ndarray, "token"]
    own_rank: Int[np.ndarray, "token"]
    ties: Int[np.ndarray, "token"]
    kl: Float[np.ndarray, "token"]
    entropy: Float[np.ndarray, "token"]
    beyond: Float[np.ndarray, "token"]

    def __len__(self) -> int:
        return len(self.rank)

    @property
    def shifted(self) -> Where:
        """Rank above 3 under the other model."""
        return self.rank > MARGINAL

    @property
    def marginal(self) -> Where:
        """Rank 2 or 3."""
        return (self.rank > 1) & ~self.shifted

    @property
    def unshifted(self) -> Where:
        """The other model would have said the same."""
        return self.rank == 1

    def rate(self, what: str, where: Where | None = None) -> Estimate:
        """Fraction of tokens that are `shifted`, `marginal` or `unshifted`, by prompt group."""
        return self.mean(getattr(self, what).astype(np.float64), where, unit="fraction")

    def mean(self, values: Floats, where: Where | None = None, *, unit: str = "") -> Estimate:
        """Mean over tokens with an interval that resamples the prompts' groups."""
        kept = np.ones(len(self), bool) if where is None else where
        groups = [g for g, k in zip(self.groups, kept, strict=True) if k]
        return cluster_mean(values[kept], groups, unit=unit)

    def quantile(self, values: Floats, q: float, *, unit: str = "", seed: int = 0) -> Estimate:
        """A quantile over tokens, with the same sort of interval."""
        draws = row_draws(self.groups, n_resamples=1000, seed=seed)
        order = np.argsort(values)
        mass = draws[order].cumsum(0)
        # The smallest value that at least a fraction q of the drawn tokens do not exceed.
        index = (mass >= q * mass[-1] - 1e-9).argmax(0)
        n_groups = len(set(self.groups))
        found = float(np.quantile(values, q, method="inverted_cdf"))
        low, high = percentiles(values[order][index], n_groups)
        return Estimate(found, low, high, n_groups, unit)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary of lists."""
        return {
            f.name: list(v) if isinstance(v := getattr(self, f.name), tuple) else v.tolist()
            for f in fields(self)
        }


def forced_tokens(
    own: Model,
    other: Model,
    answers: Sequence[Tokenized],
    groups: Sequence[str],
    *,
    kind: Callable[[str], str],
    token_budget: int = TOKEN_BUDGET,
) -> ForcedTokens:
    """Both models teacher-forced on identical ids, one batched pass each.

    Raises:
        PromptError: all answers are empty.
        ActivationError: logits that are not finite.
    """
    if not any(item.answer for item in answers):
        raise PromptError("every answer is empty, so there is no token to compare; ask otherwise")
    prompts = np.concatenate([np.full(len(a.answer), i) for i, a in enumerate(answers)])
    tokens = np.concatenate([np.array(a.answer, np.int64) for a in answers])
    starts = np.cumsum([0, *(len(a.answer) for a in answers)])
    found = {
        name: np.empty(len(tokens), np.float64 if name in ("kl", "entropy", "beyond") else np.int64)
        for name in ("rank", "own_rank", "ties", "kl", "entropy", "beyond")
    }
    for batch in scored_batches(own, answers, token_budget=token_budget):
        width = batch.answer_width
        if not width:
            continue
        mask = batch.answer_mask[:, batch.width - width :].cpu()
        chosen = batch.tokens[:, batch.width - width :].cpu()[mask]
        rows, columns = mask.nonzero(as_tuple=True)
        first = mask.long().argmax(1)
        where = starts[batch.rows.cpu().numpy()[rows]] + (columns - first[rows]).numpy()
        logits = [_answer_logits(model, batch, mask) for model in (own, other)]
        step = max(1, AT_ONCE // logits[0].shape[1])
        for i in range(0, len(chosen), step):
            part = slice(i, i + step)
            for name, values in _read(logits[0][part], logits[1][part], chosen[part]).items():
                found[name][where[part]] = values.cpu().numpy()
    names = {int(t): own.decode([int(t)]) for t in np.unique(tokens)}
    text = tuple(names[int(t)] for t in tokens)
    return ForcedTokens(
        prompt=prompts,
        position=np.arange(len(tokens)) - starts[prompts],
        token=tokens,
        text=text,
        kind=tuple(kind(t) for t in text),
        groups=tuple(groups[i] for i in prompts),
        **found,
    )


def _answer_logits(model: Model, batch: Batch, mask: Tensor) -> Float[Tensor, "token d_vocab"]:
    """What the model predicts at each answer token, row after row."""
    device = torch.device(model.info.device)
    if batch.tokens.device != device:
        batch = Batch(
            *(v.to(device) for v in (batch.tokens, batch.mask, batch.prompt_len, batch.rows))
        )
    logits = model.run(batch, logits="answer").logits
    assert logits is not None
    kept = logits[:, -batch.answer_width - 1 : -1][mask.to(logits.device)]
    if not kept.isfinite().all():
        raise ActivationError(
            f"{model.info.name} gives logits that are not finite; load it with dtype='float32'"
        )
    return kept


def _read(own: Tensor, other: Tensor, chosen: Tensor) -> dict[str, Tensor]:
    """What is kept of both predictions, `[token]` each."""
    found = {}
    for name, logits in (("own_rank", own), ("rank", other)):
        mine = logits.gather(1, chosen.to(logits.device)[:, None])
        found[name] = 1 + (logits > mine).sum(1)
        if name == "rank":
            found["ties"] = (logits == mine).sum(1) - 1
    # Rounding of float32 is as large as the KL of two models that hardly differ.
    exact = torch.float32 if "mps" in (own.device.type, other.device.type) else torch.float64
    p, q = (v.to(own.device, exact).log_softmax(-1) for v in (own, other))
    found["kl"] = divergence(p, q)
    found["entropy"] = -torch.xlogy(q.exp(), q.exp()).sum(-1, dtype=torch.float64)
    top = q.topk(min(MARGINAL, q.shape[1]), dim=-1).values.exp().sum(-1, dtype=torch.float64)
    found["beyond"] = (1 - top).clamp(min=0)
    return found

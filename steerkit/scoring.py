"""Teacher-forced scores: log-probabilities of answers, KL per token, perplexity.

Every score comes back in the order of the prompts, one float64 tensor a prompt, one value a
token. Log-softmax is taken in float32 (float64 for float64 logits); sums and means are
float64. A value that is not a number is an error, never a zero and never dropped.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.batch import Batch, Tokenized, plan
from steerkit.errors import ActivationError, PromptError
from steerkit.prompts import Prompt
from steerkit.protocols import Completion, Model

Scored = Prompt | Tokenized
"""A prompt with its answer, as text or as token ids."""

TOKEN_BUDGET = 8192


def with_own_answers(completions: Sequence[Completion]) -> list[Tokenized]:
    """The prompts with the answers that were generated, as the very tokens generated.

    Re-tokenizing the text of an answer may give other tokens; KL on the plain model's own
    answer is about the tokens it chose.
    """
    return [Tokenized(c.prompt_tokens, c.tokens) for c in completions]


def answer_log_probs(
    model: Model,
    prompts: Sequence[Scored],
    *,
    slots: Sequence[int] | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> list[Float[Tensor, "token"]]:
    """log p(answer token | prompt, earlier answer tokens) of each prompt's answer, in nats.

    Args:
        model: plain or steered.
        prompts: prompts that carry an answer; an empty answer has no tokens.
        slots: program slot of each prompt (0 = unsteered); slot 1 by default where steered.
        token_budget: padded tokens a forward pass.

    Raises:
        PromptError: no prompts, or a prompt longer than the context.
        ActivationError: a log-probability that is not a number.
    """
    found: list[Tensor] = [torch.empty(0, dtype=torch.float64)] * len(prompts)
    for batch in scored_batches(model, prompts, token_budget=token_budget):
        rows = batch.rows.tolist()
        own = None if slots is None else [slots[i] for i in rows]
        taken = _gathered(_answer_logits(model, batch, own), batch)
        for i, values in zip(rows, _split(taken, batch, "log-probabilities"), strict=True):
            found[i] = values
    return found


def kl_per_token(
    plain: Model,
    steered: Model,
    prompts: Sequence[Scored],
    *,
    given: Sequence[Tokenized] | None = None,
    slots: Sequence[int] | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> list[Float[Tensor, "token"]]:
    """KL(plain || steered) at every token of each prompt's answer, in nats.

    Both models are teacher-forced on the same answer, so the whole answer counts and not
    only its first token. Give the plain model's own answers (`with_own_answers`). `given`
    are what the steered model reads instead: the same answers after other prompts, such as
    ones with a system prompt.
    """
    found: list[Tensor] = [torch.empty(0, dtype=torch.float64)] * len(prompts)
    for batch in scored_batches(plain, prompts, token_budget=token_budget):
        rows = batch.rows.tolist()
        own = None if slots is None else [slots[i] for i in rows]
        read = batch
        if given is not None:
            read = Batch.collate(
                [given[i] for i in rows], pad_id=0, rows=rows, device=steered.info.device
            )
        p = _log_softmax(_answer_logits(plain, batch, None))
        q = _log_softmax(_answer_logits(steered, read, own))
        for i, values in zip(rows, _split(divergence(p, q), batch, "KL"), strict=True):
            found[i] = values
    return found


def kl_by_slot(
    plain: Model,
    steered: Model,
    prompts: Sequence[Scored],
    slots: Sequence[int],
    *,
    token_budget: int = TOKEN_BUDGET,
) -> list[list[Float[Tensor, "token"]]]:
    """`kl_per_token` of every given slot, `[slot][prompt]`; the plain model runs once."""
    empty = torch.empty(0, dtype=torch.float64)
    found: list[list[Tensor]] = [[empty] * len(prompts) for _ in slots]
    p, of = empty, None
    for batch, first, some in slot_batches(plain, prompts, slots, token_budget=token_budget):
        if batch is not of:
            p, of = _log_softmax(_answer_logits(plain, batch, None)), batch
        kl = divergence(p.repeat(len(some), 1, 1), _log_softmax(_slot_logits(steered, batch, some)))
        for j, values in enumerate(_split(kl, batch.repeated(len(some)), "KL")):
            found[first + j // len(batch)][int(batch.rows[j % len(batch)])] = values
    return found


def answer_log_probs_by_slot(
    model: Model,
    prompts: Sequence[Scored],
    slots: Sequence[int],
    *,
    token_budget: int = TOKEN_BUDGET,
) -> list[list[Float[Tensor, "token"]]]:
    """`answer_log_probs` of every given slot, `[slot][prompt]`."""
    empty = torch.empty(0, dtype=torch.float64)
    found: list[list[Tensor]] = [[empty] * len(prompts) for _ in slots]
    for batch, first, some in slot_batches(model, prompts, slots, token_budget=token_budget):
        many = batch.repeated(len(some))
        taken = _gathered(_slot_logits(model, batch, some), many)
        for j, values in enumerate(_split(taken, many, "log-probabilities")):
            found[first + j // len(batch)][int(batch.rows[j % len(batch)])] = values
    return found


def perplexity(
    model: Model,
    texts: Sequence[Scored | str],
    *,
    slots: Sequence[int] | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> Float[Tensor, "text"]:
    """exp(mean negative log-likelihood per token) of each text, float64.

    A plain string is raw text, scored from its second token on; a prompt with an answer is
    scored on its answer. NaN where a text has nothing to score (a single token).
    """
    items = [text if isinstance(text, Tokenized) else _as_tokens(model, text) for text in texts]
    scored = answer_log_probs(model, items, slots=slots, token_budget=token_budget)
    return torch.stack(
        [(-x.mean()).exp() if len(x) else x.new_tensor(float("nan")) for x in scored]
    )


def scored_batches(
    model: Model, prompts: Sequence[Scored], *, token_budget: int = TOKEN_BUDGET
) -> Iterator[Batch]:
    """The prompts in batches of similar length on the model's device."""
    if not prompts:
        raise PromptError("no prompts to score; give at least one")
    texts = [p for p in prompts if isinstance(p, Prompt)]
    read = iter(model.tokenize(texts) if texts else ())
    items = [p if isinstance(p, Tokenized) else next(read) for p in prompts]
    for rows in plan([len(item) for item in items], token_budget):
        # Padding is masked, so the pad id never matters.
        yield Batch.collate([items[i] for i in rows], pad_id=0, rows=rows, device=model.info.device)


def slot_batches(
    model: Model,
    prompts: Sequence[Scored],
    slots: Sequence[int],
    *,
    token_budget: int = TOKEN_BUDGET,
) -> Iterator[tuple[Batch, int, Sequence[int]]]:
    """What `Model.run_slots` takes at a time: a batch, and which slots (the first's number too).

    Few prompts with all slots rather than all prompts with few slots: the unsteered part of
    the work is then done once for all of them.
    """
    for batch in scored_batches(model, prompts, token_budget=token_budget // (len(slots) + 1) or 1):
        at_once = max(1, token_budget // (batch.width * len(batch)) - 1)
        for first in range(0, len(slots), at_once):
            yield batch, first, slots[first : first + at_once]


def divergence(
    p: Float[Tensor, "*lead vocab"], q: Float[Tensor, "*lead vocab"]
) -> Float[Tensor, "*lead"]:
    """KL(P || Q) in nats of two log-probability tensors, summed in float64; 0 log 0 = 0."""
    # Where p is zero its log is -inf and the term is 0, whatever q says.
    term = torch.where(p == -torch.inf, torch.zeros_like(p), p.exp() * (p - q))
    return term.sum(-1, dtype=torch.float64).clamp(min=0)


def _as_tokens(model: Model, text: Prompt | str) -> Tokenized:
    if isinstance(text, Prompt) and text.answer:
        return model.tokenize([text])[0]
    raw = Prompt(text, template="raw") if isinstance(text, str) else text
    ids = model.tokenize([raw])[0].prompt
    return Tokenized(ids[:1], ids[1:])


def _answer_logits(model: Model, batch: Batch, slots: Sequence[int] | None) -> Tensor:
    """Logits that predict the answer columns, `[batch answer_width vocab]`."""
    logits = model.run(batch, logits="answer", slots=slots).logits
    assert logits is not None
    return logits[:, -batch.answer_width - 1 : -1]


def _slot_logits(model: Model, batch: Batch, slots: Sequence[int]) -> Tensor:
    """The same of every slot, `[slot * batch answer_width vocab]`."""
    logits = model.run_slots(batch, slots, logits="answer").logits
    assert logits is not None
    return logits[:, -batch.answer_width - 1 : -1]


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _gathered(logits: Tensor, batch: Batch) -> Tensor:
    width = batch.answer_width
    targets = batch.tokens[:, batch.width - width :]
    return _log_softmax(logits).gather(-1, targets[..., None])[..., 0].double()


def _split(values: Tensor, batch: Batch, what: str) -> list[Tensor]:
    """The answer tokens' values of each row, on the CPU; NaN is an error."""
    mask = batch.answer_mask[:, batch.width - batch.answer_width :]
    parts = [v[m].double().cpu() for v, m in zip(values, mask, strict=True)]
    bad = [i for i, part in zip(batch.rows.tolist(), parts, strict=True) if part.isnan().any()]
    if bad:
        raise ActivationError(
            f"{what} of {len(bad)} prompts are not numbers, first prompt {bad[0]}; the model's "
            "logits overflowed: use a smaller strength, or load it with dtype='float32'"
        )
    return parts

"""The branching factor: among how many tokens a model chooses, on average, as it answers.

exp of the mean entropy of the truncated next-token distributions along the model's own samples.
One estimator is used for answers of any length; two are reported, which agree in the mean.
Distributions are whole, not the top 50 of a service.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steerkit.batch import Tokenized
from steerkit.errors import MethodError
from steerkit.evaluations.branching_result import BranchingFactor, CurvePoint, PromptBranching
from steerkit.evaluations.decoding import Decoding
from steerkit.models.generate import truncated
from steerkit.prompts import Prompt, groups_of
from steerkit.protocols import Model
from steerkit.scoring import scored_batches
from steerkit.statistics import Estimate, group_codes, percentiles, row_draws

Floats = NDArray[np.float64]
STRANGE = 0.01
"""More sampled tokens than this share outside the distribution read again are an error."""
LIMIT = 0.05
"""The curve ends where fewer than this share of all samples is still alive."""


@dataclass(frozen=True, eq=False)
class SampledAnswer:
    """What one sampled answer says of branching, one value a token.

    Attributes:
        prompt: number of the prompt.
        entropy: of the truncated distribution that each token was drawn from, nats.
        surprisal: -log of the drawn token's truncated probability, nats.
        ending: truncated probability that the answer ends with that token.
        ended: whether it ended by itself, rather than at the limit.
    """

    prompt: int
    entropy: Floats
    surprisal: Floats
    ending: Floats
    ended: bool


def branching_factor(
    model: Model,
    prompts: Sequence[Prompt | str],
    *,
    decoding: Decoding | None = None,
    n_samples: int = 50,
    max_new_tokens: int = 64,
    n_resamples: int = 2000,
    token_budget: int = 8192,
    seed: int = 0,
    progress: bool = False,
) -> BranchingFactor:
    """Sample answers, read the distribution of every token again, and average its entropy.

    Args:
        model: plain or steered.
        prompts: what is asked; a prompt's `group` is never split.
        decoding: how answers are drawn and truncated; temperature 1 and top-p 0.9 by default.
        n_samples: answers a prompt.
        max_new_tokens: of each.
        n_resamples: of groups.
        token_budget: padded tokens a batch.
        seed: of sampling and resampling.
        progress: show a bar.

    Raises:
        MethodError: fewer than two samples, or greedy decoding, which never branches.

    Source: TMLR 2026, "branching factor"; weights and intervals are this library's.
    """
    how = Decoding(top_p=0.9) if decoding is None else decoding
    if n_samples < 2 or how.temperature == 0:
        raise MethodError(
            "the branching factor averages over samples: at least 2 a prompt, at a temperature "
            f"above 0; got {n_samples} at '{how}'"
        )
    asked = [Prompt.of(p) for p in prompts]
    said = model.generate(
        [p for p in asked for _ in range(n_samples)],
        max_new_tokens=max_new_tokens,
        temperature=how.temperature,
        top_p=how.top_p,
        top_k=how.top_k,
        seed=seed,
        token_budget=token_budget,
        progress=progress,
    )
    items = [Tokenized(c.prompt_tokens, c.tokens) for c in said]
    samples = _read_again(model, items, how, n_samples, token_budget)
    return branching_statistics(
        samples,
        groups_of(asked),
        texts=[p.text for p in asked],
        prompt_tokens=[c.prompt_tokens for c in said[::n_samples]],
        decoding=str(how),
        model=model.info.name,
        n_resamples=n_resamples,
        seed=seed,
    )


def branching_statistics(
    samples: Sequence[SampledAnswer],
    groups: Sequence[str],
    *,
    texts: Sequence[str] = (),
    prompt_tokens: Sequence[tuple[int, ...]] = (),
    decoding: str = "",
    model: str = "",
    n_resamples: int = 2000,
    seed: int = 0,
) -> BranchingFactor:
    """What `branching_factor` reports, from samples that are already there.

    Args:
        samples: at least one for each prompt.
        groups: of the prompts.
        texts: of the prompts.
        prompt_tokens: as the model read them.
        decoding: how samples were drawn.
        model: its name.
        n_resamples: of groups.
        seed: of resampling.

    Raises:
        MethodError: a prompt without samples.
    """
    own: list[list[SampledAnswer]] = [[] for _ in groups]
    for sample in samples:
        own[sample.prompt].append(sample)
    if not all(own):
        raise MethodError(f"prompt {own.index([])} has no samples")
    entropy = np.array([_pooled([s.entropy for s in some]) for some in own])
    surprisal = np.array([_pooled([s.surprisal for s in some]) for some in own])
    draws = row_draws(groups, n_resamples=n_resamples, seed=seed)
    n_groups = int(group_codes(groups).max()) + 1
    names = texts or [""] * len(groups)
    read = prompt_tokens or [()] * len(groups)
    return BranchingFactor(
        factor=_geometric(entropy, draws, n_groups),
        by_surprisal=_geometric(surprisal, draws, n_groups),
        prompts=tuple(
            PromptBranching(
                text,
                group,
                float(np.exp(h)),
                float(np.exp(v)),
                _error([s.entropy for s in some]),
                float(np.mean([len(s.entropy) for s in some])),
                float(np.mean([s.ended for s in some])),
                ids,
            )
            for text, group, h, v, some, ids in zip(
                names, groups, entropy, surprisal, own, read, strict=True
            )
        ),
        curve=tuple(_curve(own, groups, n_resamples, seed)),
        n_samples=min(len(some) for some in own),
        decoding=decoding,
        model=model,
        seed=seed,
    )


def bf_released(samples: Sequence[SampledAnswer], *, switch: int = 50) -> float:
    """The released code's branching factor of one prompt's samples. It jumps at `switch`.

    Of answers up to `switch` tokens exp of the mean over positions of the mean entropy of
    the samples still alive, in which late positions of few samples count as much as early
    ones of all; of longer answers exp of the mean surprisal of each. Kept to be compared
    with; `branching_factor` does not use it. Source: released code of the paper.
    """
    longest = max(len(s.entropy) for s in samples)
    if longest > switch:
        return float(np.exp(np.mean([s.surprisal.mean() for s in samples])))
    alive = [[s.entropy[t] for s in samples if len(s.entropy) > t] for t in range(longest)]
    return float(np.exp(np.mean([np.mean(column) for column in alive])))


def _pooled(values: Sequence[Floats]) -> float:
    """Sum over all tokens of all samples over their number: nats a token."""
    return float(sum(v.sum() for v in values) / max(1, sum(len(v) for v in values)))


def _error(values: Sequence[Floats]) -> float:
    """Standard error of `_pooled` over samples, by the ratio's linearisation."""
    n = len(values)
    if n < 2:
        return float("nan")
    sums, sizes = np.array([v.sum() for v in values]), np.array([len(v) for v in values])
    off = sums - sums.sum() / sizes.sum() * sizes
    return float(np.sqrt((off**2).sum() / (n - 1) / n) / sizes.mean())


def _geometric(logs: Floats, draws: Floats, n_groups: int) -> Estimate:
    """exp of the mean over prompts, groups resampled on the log scale."""
    low, high = percentiles(logs @ draws / draws.sum(0), n_groups)
    return Estimate(
        float(np.exp(logs.mean())), float(np.exp(low)), float(np.exp(high)), n_groups, "tokens"
    )


def _curve(
    own: Sequence[Sequence[SampledAnswer]], groups: Sequence[str], n_resamples: int, seed: int
) -> list[CurvePoint]:
    """Entropy by position, of the answers still alive and as if none had ended.

    An answer alive at t is one of few where the model was likely to have ended before: its
    weight is one over the probability of having gone on, the product over earlier tokens of
    1 - P(end). So long answers do not stand for those that ended.
    """
    longest = max(len(s.entropy) for some in own for s in some)
    n_all = sum(len(some) for some in own)
    draws = row_draws(groups, n_resamples=n_resamples, seed=seed)
    n_groups = int(group_codes(groups).max()) + 1
    # [prompt position] sums over samples: how many are alive, weights, both times entropy.
    alive, weight, plain, weighted, square = np.zeros((5, len(own), longest))
    for i, some in enumerate(own):
        for s in some:
            n = len(s.entropy)
            going_on = np.maximum(1 - s.ending[:-1], 1e-9)
            w = 1 / np.concatenate([[1.0], np.cumprod(going_on)])
            alive[i, :n] += 1
            weight[i, :n] += w
            plain[i, :n] += s.entropy
            weighted[i, :n] += w * s.entropy
            square[i, :n] += w**2
    points = []
    for t in range(longest):
        share = float(alive[:, t].sum() / n_all)
        if share < LIMIT:
            break
        points.append(
            CurvePoint(
                t,
                share,
                _ratio(plain[:, t], alive[:, t], draws, n_groups),
                _ratio(weighted[:, t], weight[:, t], draws, n_groups),
                float(weight[:, t].sum() ** 2 / square[:, t].sum()),
            )
        )
    return points


def _ratio(above: Floats, below: Floats, draws: Floats, n_groups: int) -> Estimate:
    """exp of a ratio of sums over prompts, groups resampled."""
    total = below @ draws
    found = (above @ draws)[total > 0] / total[total > 0]
    low, high = percentiles(found, n_groups)
    value = float(above.sum() / below.sum())
    return Estimate(
        float(np.exp(value)), float(np.exp(low)), float(np.exp(high)), n_groups, "tokens"
    )


def _read_again(
    model: Model,
    items: Sequence[Tokenized],
    how: Decoding,
    n_samples: int,
    token_budget: int,
) -> list[SampledAnswer]:
    """The truncated distribution of every generated token, by one pass over each answer."""
    ends = _ends(model)
    found: list[SampledAnswer | None] = [None] * len(items)
    outside = 0
    for batch in scored_batches(model, list(items), token_budget=token_budget):
        logits = model.run(batch, logits="answer").logits
        assert logits is not None
        width = batch.answer_width
        tokens = batch.tokens[:, batch.width - width :]
        mask = batch.answer_mask[:, batch.width - width :]
        logp, strange = _log_distribution(logits[:, -width - 1 : -1], tokens, how)
        outside += int((strange & mask).sum())
        surprisal = -logp.gather(-1, tokens[..., None])[..., 0]
        p = logp.exp()
        entropy = -torch.where(p > 0, p * logp, torch.zeros_like(p)).sum(-1)
        ending = p[..., list(ends)].sum(-1) if ends else torch.zeros_like(entropy)
        for row, number in enumerate(batch.rows.tolist()):
            each = [v[row][mask[row]].double().cpu().numpy() for v in (entropy, surprisal, ending)]
            answer = items[number].answer
            ended = bool(answer) and answer[-1] in ends
            found[number] = SampledAnswer(number // n_samples, each[0], each[1], each[2], ended)
    total = sum(len(item.answer) for item in items)
    if outside > STRANGE * total:
        raise MethodError(
            f"{outside} of {total} sampled tokens of {model.info.name} lie outside the truncated "
            "distribution that is read there again, so the two differ by more than rounding; "
            "load the model with dtype='float32'"
        )
    return [s for s in found if s is not None]


def _log_distribution(logits: Tensor, tokens: Tensor, how: Decoding) -> tuple[Tensor, Tensor]:
    """Log-probabilities of what was sampled from, float64, and which tokens lie outside it.

    -inf where truncated. Rounding may move the last token that is kept: one that was drawn was.
    """
    # Scaled in float32, as when sampling.
    scaled = logits.float() / how.temperature
    kept = truncated(scaled, top_k=how.top_k, top_p=how.top_p)
    drawn = tokens[..., None]
    outside = kept.gather(-1, drawn)[..., 0] == -torch.inf
    kept = kept.scatter(-1, drawn, scaled.gather(-1, drawn))
    return kept.double().log_softmax(-1), outside


def _ends(model: Model) -> tuple[int, ...]:
    """Tokens that end an answer, where the model says so."""
    engine = getattr(model, "engine", None)
    return tuple(engine.text.eos_ids) if engine is not None else ()

"""Evaluation records for the selection rule, all candidates in batched rows.

The scores are those of the published code: refusal score log p - log(1 - p) of the refusal
tokens at the last prompt token, in float64 with 1e-8 inside the logs; KL at the last prompt
token with 1e-6 inside the logs. A direction is ablated from the input of every block and from
every attention and MLP output, at every position, and the mean difference is added, once, at
every position of its own layer.

Source: Arditi et al. 2024 (arXiv:2406.11717) and its published code.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.captures import capture_positions, last_tokens
from steerkit.direction import Direction, Directions
from steerkit.errors import DirectionError, MethodError, PromptError
from steerkit.extraction import extract
from steerkit.extraction.labelled import FLAT
from steerkit.interventions import Ablate, Add
from steerkit.prompts import Contrast, Prompt
from steerkit.protocols import Intervention, Model
from steerkit.refusals import is_refusal
from steerkit.scoring import TOKEN_BUDGET, scored_batches, slot_batches
from steerkit.searches.measure import views
from steerkit.site import Site, Stream, sites_of

WRITTEN: tuple[Stream, ...] = ("resid_pre", "attn_out", "mlp_out")
"""The streams that the published hooks ablate."""


def refusal_score(
    logits: Float[Tensor, "*lead d_vocab"], tokens: Sequence[int], *, epsilon: float = 1e-8
) -> Float[Tensor, "*lead"]:
    """log p(refusal tokens) - log(1 - p), in float64, nats.

    >>> round(float(refusal_score(torch.log(torch.tensor([0.2, 0.6, 0.2])), [1])), 4)
    0.4055
    """
    p = logits.double().softmax(-1)[..., list(tokens)].sum(-1)
    return (p + epsilon).log() - (1 - p + epsilon).log()


def last_token_kl(
    plain: Float[Tensor, "*lead d_vocab"],
    steered: Float[Tensor, "*lead d_vocab"],
    *,
    epsilon: float = 1e-6,
) -> Float[Tensor, "*lead"]:
    """sum p (log(p + eps) - log(q + eps)), in float64, nats; as published, so not quite a KL."""
    p, q = (x.double().softmax(-1) for x in (plain, steered))
    return (p * ((p + epsilon).log() - (q + epsilon).log())).sum(-1)


def candidate_directions(
    model: Model,
    contrast: Contrast,
    *,
    positions: Sequence[int] = last_tokens(5),
    token_budget: int = TOKEN_BUDGET,
    progress: bool = True,
) -> Directions:
    """Mean differences at the input of every block, at several positions, from one pass.

    Sites where the sides do not differ (the first block's input, at tokens that every prompt
    has) give none.

    Args:
        model: plain.
        contrast: harmful prompts on the positive side.
        positions: token indices from the prompt's end; the published code takes all tokens
            after the instruction.
        token_budget: padded tokens a batch.
        progress: show a bar on stderr.

    Raises:
        PromptError: a prompt with fewer tokens.
        DirectionError: the sides differ nowhere.
    """
    read = capture_positions(
        model, contrast, positions, streams="resid_pre", token_budget=token_budget,
        progress=progress,
    )  # fmt: skip
    found: list[Direction] = []
    for acts in read.values():
        y = acts.row_labels == 1
        x = acts.values.double()
        apart = (x[y].mean(0) - x[~y].mean(0)).norm(dim=-1)
        live = [i for i, far in enumerate(apart > FLAT * x.norm(dim=-1).mean(0)) if far]
        if live:
            some = replace(
                acts, values=acts.values[:, live], sites=tuple(acts.sites[i] for i in live)
            )
            found += extract(some, "mean_difference", n_folds=0, progress=False)
    if not found:
        raise DirectionError(
            f"the sides of '{contrast.name}' differ at none of the positions "
            f"{', '.join(map(str, positions))}; look at the contrast, or read other positions"
        )
    return Directions(tuple(found))


def measure_records(
    model: Model,
    directions: Sequence[Direction],
    harmful: Sequence[Prompt | str],
    harmless: Sequence[Prompt | str],
    *,
    refusal_tokens: Sequence[int | str] | None = None,
    filter_prompts: bool = True,
    token_budget: int = TOKEN_BUDGET,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Evaluate candidates for `select_direction`: plain mappings that JSON takes.

    Args:
        model: the model; ablation and addition are put on it.
        directions: candidates, as from `candidate_directions`: read at the input of a block
            (`resid_pre@l`, or `resid_post@(l - 1)`), their vector the mean difference.
        harmful: validation prompts on which ablating should end refusal; no prompt that the
            directions were fitted on.
        harmless: validation prompts on which adding should start it.
        refusal_tokens: ids, or texts whose first token counts; by default the first tokens
            of the model's own refusals of the harmful prompts.
        filter_prompts: keep harmful prompts with a refusal score above 0 and harmless ones
            below 0 only, as published.
        token_budget: padded tokens a forward pass.
        progress: show a bar on stderr.

    Raises:
        MethodError: no refusal tokens to be found.
        PromptError: no prompts, or none that the plain model treats as it should.
        DirectionError: a direction that was not read at the input of a block.
    """
    if not directions:
        raise DirectionError("there are no directions to evaluate; see candidate_directions")
    where = [(_position(d), _layer(d, model.info.n_layers)) for d in directions]
    asked = [[replace(Prompt.of(p), answer="") for p in side] for side in (harmful, harmless)]
    for name, side in zip(("harmful", "harmless"), asked, strict=True):
        if not side:
            raise PromptError(f"there are no {name} prompts; give some of both")
    tokens = _tokens(model, refusal_tokens, asked[0])
    plain = [_plain(model, side, token_budget) for side in asked]
    if filter_prompts:
        asked, plain = _filtered(asked, plain, tokens)
    bad, good = asked
    sites = sites_of(None, [s for s in WRITTEN if s in model.info.streams], model.info.n_layers)
    ablate = [
        Ablate(d.at(Site(n, "resid_pre")), sites=sites)
        for d, (_, n) in zip(directions, where, strict=True)
    ]
    add = [
        Add(d.at(Site(n, "resid_pre")), strength=1.0)
        for d, (_, n) in zip(directions, where, strict=True)
    ]
    from tqdm.auto import tqdm

    with tqdm(total=3 * len(directions), desc="records", disable=not progress) as bar:

        def mean(
            interventions: Sequence[Intervention],
            prompts: Sequence[Prompt],
            score: Callable[[Tensor, Tensor], Tensor],
        ) -> list[float]:
            found = _means(model, interventions, prompts, score, token_budget)
            bar.update(len(interventions))
            return found

        def refused(logits: Tensor, _: Tensor) -> Tensor:
            return refusal_score(logits, tokens)

        kl = mean(ablate, good, lambda logits, rows: last_token_kl(plain[1][rows], logits))
        bypass = mean(ablate, bad, refused)
        induce = mean(add, good, refused)
    return [
        {
            "position": position,
            "layer": layer,
            "refusal_score": b,
            "steering_score": i,
            "kl_div_score": k,
        }
        for (position, layer), b, i, k in zip(where, bypass, induce, kl, strict=True)
    ]


def _means(
    model: Model,
    interventions: Sequence[Intervention],
    prompts: Sequence[Prompt],
    score: Callable[[Tensor, Tensor], Tensor],
    token_budget: int,
) -> list[float]:
    """Mean over prompts of `score(last logits [slot row d_vocab], prompt numbers)`, each slot."""
    means: list[float] = []
    for view, slots in views(model, interventions):
        total = torch.zeros(len(slots), dtype=torch.float64)
        for batch, first, some in slot_batches(view, prompts, slots, token_budget=token_budget):
            logits = view.run_slots(batch, some, logits="last").logits
            assert logits is not None
            values = score(logits[:, -1].view(len(some), len(batch), -1).cpu(), batch.rows.cpu())
            total[first : first + len(some)] += values.sum(1)
        means += (total / len(prompts)).tolist()
    return means


def _plain(
    model: Model, prompts: Sequence[Prompt], token_budget: int
) -> Float[Tensor, "prompt d_vocab"]:
    """The unsteered logits at the last prompt token."""
    found = torch.empty(len(prompts), model.info.d_vocab)
    for batch in scored_batches(model, prompts, token_budget=token_budget):
        logits = model.run(batch, logits="last").logits
        assert logits is not None
        found[batch.rows.cpu()] = logits[:, -1].cpu()
    return found


def _filtered(
    asked: list[list[Prompt]], plain: list[Tensor], tokens: Sequence[int]
) -> tuple[list[list[Prompt]], list[Tensor]]:
    """Prompts whose plain refusal score has the sign of their side, and their logits."""
    prompts: list[list[Prompt]] = []
    logits: list[Tensor] = []
    for name, sign, side, out in zip(("harmful", "harmless"), (1, -1), asked, plain, strict=True):
        keep = (sign * refusal_score(out, tokens) > 0).nonzero().flatten().tolist()
        if not keep:
            raise PromptError(
                f"the plain model {'refuses' if sign < 0 else 'answers'} all {len(side)} {name} "
                "prompts by the refusal tokens; give other prompts or refusal_tokens=, or pass "
                "filter_prompts=False"
            )
        prompts.append([side[i] for i in keep])
        logits.append(out[keep])
    return prompts, logits


def _tokens(
    model: Model, given: Sequence[int | str] | None, harmful: Sequence[Prompt]
) -> list[int]:
    """Ids of the refusal tokens."""
    if given is not None and not isinstance(given, str):
        texts = [t for t in given if isinstance(t, str)]
        ids = [int(t) for t in given if not isinstance(t, str)]
        items = model.tokenize([harmful[0].with_answer(t) for t in texts]) if texts else []
        ids += [item.answer[0] for item in items if item.answer]
        if not ids:
            raise MethodError(
                "refusal_tokens is empty; give token ids or the first words of refusals"
            )
        return sorted(set(ids))
    if isinstance(given, str):
        return _tokens(model, [given], harmful)
    said = model.generate(list(harmful), max_new_tokens=16)
    first = Counter(c.tokens[0] for c in said if c.tokens and is_refusal(c.text))
    if not first:
        raise MethodError(
            f"the model refused none of {len(harmful)} harmful prompts, so the first tokens of "
            "its refusals are not known; pass refusal_tokens="
        )
    return sorted(first)


def _position(direction: Direction) -> int | str:
    """The token index that a direction was read at; a mean keeps its name."""
    if direction.pooling == "last":
        return -1
    inner = direction.pooling.removeprefix("index(").removesuffix(")")
    return int(inner) if inner.lstrip("-").isdigit() else direction.pooling


def _layer(direction: Direction, n_layers: int) -> int:
    """The block whose input the direction was read at.

    Raises:
        DirectionError: another stream, or the last block's output.
    """
    site = direction.site
    if site.stream == "resid_pre":
        return site.layer
    if site.stream == "resid_post" and site.layer + 1 < n_layers:
        return site.layer + 1
    raise DirectionError(
        f"the selection rule judges directions read at the input of a block, resid_pre@0.."
        f"{n_layers - 1}; got {site}: capture streams='resid_pre', or use candidate_directions"
    )

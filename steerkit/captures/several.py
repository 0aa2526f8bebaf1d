"""`capture_positions`: several position rules read in one pass over the prompts."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from time import perf_counter

import torch

from steerkit.activations import Activations
from steerkit.captures.assembly import activations, in_memory, provenance
from steerkit.captures.job import Job, Piece, Prompts, choose_sites
from steerkit.captures.pooling import Pooled, Pooling, Span
from steerkit.captures.verbs import Sites
from steerkit.errors import MethodError
from steerkit.prompts import Prompt
from steerkit.protocols import Model


def last_tokens(k: int) -> tuple[int, ...]:
    """Indices of the last `k` prompt tokens, the last one first.

    >>> last_tokens(3)
    (-1, -2, -3)
    """
    return tuple(range(-1, -k - 1, -1))


def capture_positions(
    model: Model,
    prompts: Prompts | Prompt | str,
    positions: Sequence[str | int | Span] = ("last", "mean_prompt"),
    *,
    streams: str | Iterable[str] = "resid_post",
    layers: int | Iterable[int] | None = None,
    sites: Sites | None = None,
    exclude_bos: bool = False,
    exclude_sinks: bool | float = False,
    token_budget: int = 4096,
    before: bool = False,
    progress: bool = True,
) -> dict[str, Activations]:
    """What `capture` gives for each of several positions, from one forward pass a batch.

    Args:
        model: plain or steered.
        prompts: a contrast or prompts.
        positions: rules that give one row a prompt: any of `capture`'s but `all`, such as
            `(*last_tokens(5), "mean_prompt")`.
        streams: see `capture`, as for all that follows.
        layers: counted from 0; all by default.
        sites: exactly these sites, instead of streams x layers.
        exclude_bos: leave a special token that stands first out of means.
        exclude_sinks: leave attention sinks out of means.
        token_budget: padded tokens a batch may hold.
        before: read the incoming stream, before interventions at each site.
        progress: show a bar on stderr.

    Returns:
        Activations by the rule's name (`last`, `index(-2)`, `mean_prompt`), in the order given.

    Raises:
        MethodError: no positions, the same one twice, or `all`.
        PromptError: no prompts, or one without the asked index, span or answer.
        SiteError: a layer or stream the model lacks.
        ActivationError: NaN or infinite values; names site and prompt.
    """
    rules = [Pooling.of(p, exclude_bos=exclude_bos, exclude_sinks=exclude_sinks) for p in positions]
    _check(rules)
    plan = Job.plan(
        model,
        prompts,
        sites=choose_sites(model, streams, layers, sites),
        pooling=rules[0],
        before=before,
        token_budget=token_budget,
    )
    jobs = [plan, *(_with_rule(plan, rule) for rule in rules[1:])]
    began = perf_counter()
    pieces: list[list[Piece]] = [[] for _ in jobs]
    from tqdm.auto import tqdm

    with tqdm(total=len(plan.prompts), desc="capture", unit="prompt", disable=not progress) as bar:
        for number, batch in enumerate(plan.batches):
            run = model.run(
                batch,
                sites=plan.sites,
                pool=_stacked([job.pooling.pool(job.masks[number], batch) for job in jobs]),
                logits="none",
                before=before,
            )
            # [rule row site d_model]
            values = torch.stack([run.streams[site].cpu() for site in plan.sites], 2)
            for job, own, taken in zip(jobs, pieces, values, strict=True):
                own.append(job.piece(number, taken))
            bar.update(len(batch))
    found = {}
    for job, own in zip(jobs, pieces, strict=True):
        tensors = in_memory(job, own)
        about = provenance(job, len(tensors["values"]), began, positions=len(jobs))
        found[job.pooling.name] = activations(job, tensors, about)
    return found


def _stacked(pools: Sequence[Pooled]) -> Pooled:
    """All pools of one stream, `[rule row d_model]`."""
    return Pooled(
        lambda stream, batch: torch.stack([pool(stream, batch) for pool in pools]),
        torch.stack([pool.reads for pool in pools]).any(0),
    )


def _with_rule(job: Job, rule: Pooling) -> Job:
    """The same batches, read by another rule."""
    masks = tuple(rule.select(batch, job.prompts, job.model.decode) for batch in job.batches)
    return replace(job, pooling=rule, masks=masks)


def _check(rules: Sequence[Pooling]) -> None:
    names = [rule.name for rule in rules]
    if not names:
        raise MethodError("there are no positions to capture; give at least one, such as 'last'")
    if "all" in names:
        raise MethodError(
            "positions that are read together give one row a prompt each; 'all' gives one a "
            "token: capture it by itself"
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise MethodError(f"positions are given once each; got {', '.join(twice)} again")

"""What conditions read: prompts pooled as a latch pools them."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from steerkit.batch import Batch
from steerkit.interventions.when import POOLED
from steerkit.program import Pooled
from steerkit.prompts import Prompt
from steerkit.protocols import Model
from steerkit.scoring import scored_batches
from steerkit.searches.conditions.choice import (
    States,
)
from steerkit.site import Site


def pooled_states(
    model: Model,
    prompts: Sequence[Prompt],
    sites: Sequence[Site],
    on: Sequence[Pooled],
    *,
    token_budget: int = 16_384,
) -> States:
    """What conditions read: every prompt at every site, pooled as a latch pools it; float64.

    Answers are left out; the mean is over all tokens of the prompt, special ones included.
    """
    asked = [replace(p, answer="") for p in prompts]
    found: dict[Site, Tensor] = {}
    for batch in scored_batches(model, asked, token_budget=token_budget):
        run = model.run(batch, sites=sites, pool=_both, logits="none", before=True)
        for site in sites:
            part = run.streams[site].double().cpu()
            if site not in found:
                found[site] = part.new_empty((len(asked), *part.shape[1:]))
            found[site][batch.rows.cpu()] = part
    return {(site, rule): found[site][:, POOLED.index(rule)] for site in sites for rule in on}


def _both(stream: Tensor, batch: Batch) -> Tensor:
    """The last prompt token and the mean over the prompt, `[batch 2 d_model]`."""
    absolute, length = batch.absolute.to(stream.device), batch.prompt_len.to(stream.device)
    last = (absolute == length[:, None] - 1).long().argmax(1)
    inside = (absolute >= 0) & (absolute < length[:, None])
    total = torch.where(inside[..., None], stream, stream.new_zeros(())).sum(1)
    rows = torch.arange(len(stream), device=stream.device)
    return torch.stack([stream[rows, last], total / length[:, None]], 1)

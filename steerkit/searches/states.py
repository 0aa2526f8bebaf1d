"""The streams that candidates will meet: how far each moves them, and how they vary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerkit.batch import Batch, Positions, Tokenized
from steerkit.kernels.reference import apply, pack
from steerkit.program import Program
from steerkit.protocols import Intervention, Model
from steerkit.scoring import scored_batches
from steerkit.site import Site

AT_MOST = 32
"""Prompts a side whose streams are kept; sizes are means over their tokens."""


@dataclass(frozen=True, eq=False)
class States:
    """Streams of the unsteered model over prompts and its own answers, one row a token."""

    streams: Mapping[Site, Float[Tensor, "token d_model"]]
    absolute: Int[Tensor, "token"]
    prompt_len: Int[Tensor, "token"]
    row: Int[Tensor, "token"]

    def touched(self, positions: Positions) -> Bool[Tensor, "token"]:
        """Which tokens a position rule selects."""
        return positions.select(self.absolute[:, None], self.prompt_len, self.row)[:, 0]

    def at_last_prompt(self, site: Site) -> Float[Tensor, "prompt d_model"]:
        """The last prompt token of every prompt, float64."""
        return self.streams[site][self.touched(Positions("last_prompt"))].double()

    def size(self, intervention: Intervention) -> float:
        """Mean |delta h| over the tokens it touches, in activation units; 0 if it touches none.

        Summed over its sites, each read as the unsteered model has it.
        """
        chosen = self.touched(intervention.positions)
        total = 0.0
        for site in intervention.sites:
            program = intervention.lower(site)
            if not program or not bool(chosen.any()):
                continue
            h = self.streams[site][chosen].double()[:, None]
            n = len(h)
            moved = apply(
                pack((Program(), program), "cpu", torch.float64),
                h,
                absolute=self.absolute[chosen][:, None],
                prompt_len=self.prompt_len[chosen],
                row=self.row[chosen],
                slot=[1] * n,
            )
            total += float((moved - h).norm(dim=-1).mean())
        return total


def states(
    model: Model,
    items: Sequence[Tokenized],
    sites: Sequence[Site],
    *,
    token_budget: int = 4096,
) -> States:
    """Run prompts with their answers and keep the incoming stream of every site and token.

    At most `AT_MOST` prompts, evenly spaced among those given.
    """
    wanted = tuple(sorted(set(sites)))
    parts: dict[Site, list[Tensor]] = {site: [] for site in wanted}
    facts: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in scored_batches(
        model, list(items)[:: -(-len(items) // AT_MOST)], token_budget=token_budget
    ):
        run = model.run(batch, sites=wanted, logits="none", before=True)
        for site in wanted:
            parts[site].append(run.streams[site][batch.mask].float().cpu())
        facts.append(_facts(batch))
    absolute, prompt_len, row = (torch.cat(column) for column in zip(*facts, strict=True))
    return States({s: torch.cat(found) for s, found in parts.items()}, absolute, prompt_len, row)


def _facts(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Absolute position, prompt length and prompt number of every real token."""
    columns = batch.mask.sum(1)
    return (
        batch.absolute[batch.mask].cpu(),
        batch.prompt_len.repeat_interleave(columns).cpu(),
        batch.rows.repeat_interleave(columns).cpu(),
    )

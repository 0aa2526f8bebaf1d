"""The streams that candidates will meet: how far each moves them, and how they vary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
TOKENS = 256
"""Tokens over which sizes are means, at most, evenly spaced."""
ELEMENTS = 2**24
"""Numbers held at a time while many sizes are measured."""


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
        return self.sizes([intervention])[0]

    def sizes(self, interventions: Sequence[Intervention]) -> list[float]:
        """`size` of many interventions that share sites and positions, measured together."""
        rule, sites = interventions[0].positions, interventions[0].sites
        touched = self.touched(rule).nonzero()[:, 0]
        touched = touched[:: -(-len(touched) // TOKENS) or 1]
        total = torch.zeros(len(interventions), dtype=torch.float64)
        for site in sites if len(touched) else ():
            h = self.streams[site][touched].double()
            programs = [_everywhere(one.lower(site)) for one in interventions]
            at_once = max(1, ELEMENTS // h.numel())
            for first in range(0, len(programs), at_once):
                some = programs[first : first + at_once]
                total[first : first + len(some)] += _moved(some, h)
        return [float(size) for size in total]


def _everywhere(program: Program) -> Program:
    """The program without its position rules: the tokens were chosen already.

    What a prompt decides counts as open: the states of single tokens know no prompt.
    """
    return Program(
        tuple(
            replace(
                group,
                positions=(Positions("all"),) * len(group),
                gates=tuple(None if gate and gate.latch else gate for gate in group.gates),
            )
            for group in program.groups
        )
    )


def _moved(
    programs: Sequence[Program], h: Float[Tensor, "token d_model"]
) -> Float[Tensor, "program"]:
    """Mean |delta h| of each program over all tokens given."""
    n, tokens = len(programs), len(h)
    rows = h.expand(n, *h.shape)
    changed = apply(
        pack((Program(), *programs), "cpu", torch.float64),
        rows,
        absolute=torch.zeros(n, tokens, dtype=torch.long),
        prompt_len=torch.ones(n, dtype=torch.long),
        row=torch.zeros(n, dtype=torch.long),
        slot=list(range(1, n + 1)),
    )
    return (changed - rows).norm(dim=-1).mean(1)


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

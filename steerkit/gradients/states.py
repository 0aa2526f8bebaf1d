"""The streams that a vector will be added to, averaged over the tokens that it touches."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.batch import Batch, Positions, Tokenized
from steerkit.errors import MethodError
from steerkit.prompts import Prompt
from steerkit.protocols import Model
from steerkit.scoring import scored_batches
from steerkit.site import Site


def mean_states(
    model: Model,
    prompts: Sequence[Prompt | Tokenized],
    sites: Sequence[Site],
    positions: Positions,
    *,
    token_budget: int = 4096,
) -> Float[Tensor, "prompt site d_model"]:
    """Each prompt's mean over the tokens that a position rule chooses; float64, on the CPU.

    Answers that prompts carry are read too, teacher-forced.

    Raises:
        MethodError: a rule that chooses no token of some prompt.
    """
    found = torch.zeros(len(prompts), len(sites), model.info.d_model, dtype=torch.float64)

    def pool(stream: Tensor, batch: Batch) -> Tensor:
        chosen = positions.select(batch.absolute, batch.prompt_len, batch.rows).to(stream.device)
        empty = (~chosen.any(1)).nonzero()[:, 0].tolist()
        if empty:
            raise MethodError(
                f"the position rule '{positions}' chooses no token of prompt "
                f"{int(batch.rows[empty[0]])}; choose tokens that every prompt has"
            )
        kept = torch.where(chosen[..., None], stream.double(), 0.0).sum(1)
        return kept / chosen.sum(1, keepdim=True)

    for batch in scored_batches(model, prompts, token_budget=token_budget):
        run = model.run(batch, sites=sites, pool=pool, logits="none")
        for i, site in enumerate(sites):
            found[batch.rows.cpu(), i] = run.streams[site].cpu()
    return found

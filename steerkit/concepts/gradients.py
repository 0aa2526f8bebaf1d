"""Gradients of a number a prompt with respect to a stream, summed over chosen tokens."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.batch import Positions
from steerkit.errors import ActivationError, MethodError
from steerkit.lenses.metrics import Metric, measured
from steerkit.prompts import Prompt
from steerkit.protocols import Model
from steerkit.site import Site


def gradients(
    model: Model,
    prompts: Sequence[Prompt | str],
    metric: Metric,
    sites: Sequence[Site],
    positions: Positions,
    *,
    token_budget: int = 4096,
) -> tuple[Float[Tensor, "prompt site d_model"], Float[Tensor, "prompt"]]:
    """Gradient of the metric by what is added to a site's stream at the given tokens.

    Adding the same vector v at several tokens moves the metric, to first order, by the sum of
    their gradients times v: that sum is what is returned. All sites of a batch cost one
    forward and one backward pass.

    Args:
        model: plain or steered (derivatives are taken after its interventions).
        prompts: without answers; the metric sees the logits after their last token.
        metric: `(logits [row d_vocab], prompt of each row) -> [row]`, differentiable.
        sites: where.
        positions: which tokens.
        token_budget: padded tokens of a batch.

    Returns:
        Gradients, float64, in units of the metric per activation unit; and the metric.

    Raises:
        MethodError: a metric or a network that has no gradient, or no token chosen.
        ActivationError: a gradient that is not finite, naming the site and the prompt.
    """
    found = torch.zeros(len(prompts), len(sites), model.info.d_model, dtype=torch.float64)
    values = torch.zeros(len(prompts), dtype=torch.float64)
    for batch in model.batches(prompts, token_budget=token_budget):
        run = model.run(batch, sites=sites, logits="last", grad=True)
        assert run.logits is not None
        streams = [run.streams[site] for site in sites]
        with torch.enable_grad():
            scored = measured(metric, run.logits[:, -1], batch.rows, "on the prompts as they are")
        frozen = [str(s) for s, x in zip(sites, streams, strict=True) if not x.requires_grad]
        if frozen or not scored.requires_grad:
            what = f"the stream at {frozen[0]}" if frozen else "the metric"
            raise MethodError(
                f"{what} has no gradient in {model.info.name}: its parameters are frozen, or the "
                "metric leaves torch; call network.requires_grad_(True), or compute the metric "
                "with torch operations"
            )
        chosen = positions.select(batch.absolute, batch.prompt_len, batch.rows)
        empty = (~chosen.any(1)).nonzero()[:, 0].tolist()
        if empty:
            raise MethodError(
                f"the position rule '{positions}' chooses no token of prompt "
                f"{int(batch.rows[empty[0]])}; choose tokens that every prompt has"
            )
        slopes = torch.autograd.grad(scored.sum(), streams)
        rows = batch.rows.cpu()
        for i, slope in enumerate(slopes):
            kept = torch.where(chosen[..., None], slope.double(), 0.0).sum(1)
            found[rows, i] = kept.cpu()
        values[rows] = scored.detach().double().cpu()
    bad = (~found.isfinite().all(-1)).nonzero().tolist()
    if bad:
        prompt, site = bad[0]
        raise ActivationError(
            f"the gradient at {sites[site]} is not finite for prompt {prompt} ({len(bad)} in all); "
            "load the model with dtype='float32'"
        )
    return found, values
